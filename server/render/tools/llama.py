"""Llama 3: only `{"name": ..., "parameters": {...}}`, perhaps after `<|python_tag|>`, several between semicolons."""

from __future__ import annotations

from seesaw.server.render.tools.base import Malformed, Reading
from seesaw.server.render.tools.json_calls import JsonCallParser

TAG = "<|python_tag|>"


class LlamaParser(JsonCallParser):
    markers = (TAG,)

    def _read(self) -> Reading[None]:
        while True:
            yield from self._start()
            yield from self._object()
            yield from self._separators()

    def _start(self) -> Reading[None]:
        """White space, perhaps the tag, and the `{`."""
        if (yield from self._after_space()) == TAG[0]:
            for expected in TAG[1:]:
                if (yield from self._char()) != expected:
                    raise Malformed
            yield from self._after_space()
        if self._in_hand[-1] != "{":
            raise Malformed

    def _separators(self) -> Reading[None]:
        while (yield from self._after_space()) in ";,":
            self._drop()
        self._put_back()
        self._drop()
