"""Calls that are written as JSON objects of a name and arguments, with the keys in any order."""

from __future__ import annotations

import json
from collections.abc import Callable

from seesaw.server.render.tools.base import Malformed, Reading, ToolParser, encodable

ARGUMENTS = ("arguments", "parameters")
MAX_NAME_CHARS = 256


class JsonCallParser(ToolParser):
    """Knows how to read one such object, for the parsers that find them."""

    def _object(self) -> Reading[None]:
        """A call whose `{` is in hand. Passes arguments on as they come, unless they come before the name."""
        name: str | None = None
        early: str | None = None
        is_begun = False
        while True:
            char = yield from self._after_space()
            if char == ",":
                continue
            if char == "}":
                break
            if char != '"':
                raise Malformed
            key = yield from self._string()
            if (yield from self._after_space()) != ":":
                raise Malformed
            if key == "name" and name is None:
                if (yield from self._after_space()) != '"':
                    raise Malformed
                name = yield from self._string()
                if not 1 <= len(name) <= MAX_NAME_CHARS:
                    raise Malformed
            elif key in ARGUMENTS and not is_begun and early is None:
                if name is None:
                    early = yield from self._value()
                else:
                    is_begun = True
                    yield from self._arguments(name)
            else:
                yield from self._value()
                if is_begun:
                    self._drop()
        if not is_begun:
            if name is None or early is None:
                raise Malformed
            self._begin_call(name)
            self._add_arguments(_as_arguments(early))
        self._drop()

    def _arguments(self, name: str) -> Reading[None]:
        """The value after the key of the arguments."""
        if (yield from self._after_space()) != "{":
            self._put_back()
            value = yield from self._value()
            self._begin_call(name)
            self._add_arguments(_as_arguments(value))
            return
        self._begin_call(name)
        yield from self._braces()

    def _braces(self) -> Reading[None]:
        """Arguments of the call that was begun, as they come; their `{` has been read."""
        self._add_arguments("{")
        yield from self._rest_of("{", self._add_arguments)

    def _value(self) -> Reading[str]:
        """Any value, to the letter."""
        first = yield from self._after_space()
        if first in "}],:":
            raise Malformed
        pieces = [first]
        if first in '{["':
            yield from self._rest_of(first, pieces.append)
            return "".join(pieces)
        while (char := (yield from self._char())) not in ",}]" and not char.isspace():
            pieces.append(char)
        self._put_back()
        return "".join(pieces)

    def _string(self) -> Reading[str]:
        """What a string says whose first quote has been read."""
        pieces = ['"']
        yield from self._rest_of('"', pieces.append)
        return _decoded("".join(pieces))

    def _rest_of(self, first: str, take: Callable[[str], None]) -> Reading[None]:
        """What follows the first bracket or quote of a value, up to the one that closes it."""
        depth, in_string, is_escaped = int(first in "{["), first == '"', False
        while depth or in_string:
            char = yield from self._char()
            take(char)
            if in_string:
                in_string = is_escaped or char != '"'
                is_escaped = char == "\\" and not is_escaped
            elif char == '"':
                in_string = True
            else:
                depth += (char in "{[") - (char in "}]")


def _as_arguments(value: str) -> str:
    """Arguments that are no object as they stand: a string may hold them, and null stands for none."""
    if value.startswith('"'):
        return _decoded(value)
    return "{}" if value == "null" else value


def _decoded(text: str) -> str:
    try:
        return encodable(str(json.loads(text, strict=False)))
    except ValueError:
        raise Malformed from None
