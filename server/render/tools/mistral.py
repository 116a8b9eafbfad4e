"""Mistral: `[TOOL_CALLS]` and a JSON list of calls; of newer models, `[TOOL_CALLS]name{...}` for each call."""

from __future__ import annotations

import re

from seesaw.server.ids import unique_id
from seesaw.server.render.tools.base import Malformed, Reading
from seesaw.server.render.tools.json_calls import MAX_NAME_CHARS, JsonCallParser

MARKER, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
HEAD = re.compile(rf"\s*([\w.-]+)\s*(?:{re.escape(CALL_ID)}\s*[\w-]+\s*)?(?:{re.escape(ARGS)}\s*)?")
ID_CHARS = 9  # as its templates demand of every id


class MistralParser(JsonCallParser):
    markers = (MARKER, CALL_ID, ARGS)
    resumes = True

    @staticmethod
    def make_id() -> str:
        return unique_id()[:ID_CHARS]

    def _read(self) -> Reading[None]:
        while True:
            yield from self._text_before(MARKER)
            if (yield from self._after_space()) == "[":
                yield from self._list()
            else:
                self._put_back()
                yield from self._named()
            yield from self._after_space()
            self._put_back()
            self._drop()

    def _list(self) -> Reading[None]:
        while (char := (yield from self._after_space())) != "]":
            if char == "{":
                yield from self._object()
            elif char != ",":
                raise Malformed
        self._drop()

    def _named(self) -> Reading[None]:
        """A name, perhaps an id, and the arguments."""
        head = ""
        while (char := (yield from self._char())) != "{":
            head += char
            if len(head) > 2 * MAX_NAME_CHARS:
                raise Malformed
        match = HEAD.fullmatch(head)
        if match is None or len(match[1]) > MAX_NAME_CHARS:
            raise Malformed
        self._begin_call(match[1])
        yield from self._braces()
