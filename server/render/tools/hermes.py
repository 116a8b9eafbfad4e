"""Hermes, Qwen and others: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, several after each other."""

from __future__ import annotations

from seesaw.server.render.tools.base import Malformed, Reading
from seesaw.server.render.tools.json_calls import JsonCallParser

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser(JsonCallParser):
    markers = (OPEN, CLOSE)
    resumes = True

    def _read(self) -> Reading[None]:
        while True:
            yield from self._text_before(OPEN)
            if (yield from self._after_space()) != "{":
                raise Malformed
            yield from self._object()
            yield from self._close()

    def _close(self) -> Reading[None]:
        """The marker at the end, and the white space after it. Without it the call stands all the same."""
        yield from self._after_space()
        self._put_back()
        for expected in CLOSE:
            if (yield from self._char()) != expected:
                raise Malformed
        self._drop()
        yield from self._after_space()
        self._put_back()
        self._drop()
