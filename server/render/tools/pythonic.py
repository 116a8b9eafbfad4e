"""Calls in Python's syntax and nothing else: `[get_weather(city="Paris"), get_time()]`, arguments are literals."""

from __future__ import annotations

import ast
import json
import re

from seesaw.server.render.tools.base import Malformed, Reading, ToolParser, encodable

NAME = re.compile(r"[A-Za-z_][\w.]{0,255}")
BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


class PythonicParser(ToolParser):
    """A call's arguments come in one piece: only the whole of them can be read as Python."""

    def _read(self) -> Reading[None]:
        if (yield from self._after_space()) != "[":
            raise Malformed
        yield from self._after_space()
        while True:
            self._put_back()
            yield from self._call()
            char = yield from self._after_space()
            if char == ",":
                char = yield from self._after_space()
            elif char != "]":
                raise Malformed
            if char == "]":
                break
        self._drop()
        yield from self._after_space()
        self._put_back()
        self._drop()
        raise Malformed  # what follows is text

    def _call(self) -> Reading[None]:
        name = ""
        while (char := (yield from self._char())) != "(":
            name += char
            if not NAME.fullmatch(name):
                raise Malformed
        if not name:
            raise Malformed
        arguments = _as_json((yield from self._parentheses()))
        self._begin_call(name)
        self._add_arguments(arguments)

    def _parentheses(self) -> Reading[str]:
        """What is between them; the first one has been read."""
        pieces, depth, quote, is_escaped = [], 1, "", False
        while depth:
            char = yield from self._char()
            pieces.append(char)
            if quote:
                if char == quote and not is_escaped:
                    quote = ""
                is_escaped = char == "\\" and not is_escaped
            elif char in "'\"":
                quote, is_escaped = char, False
            else:
                depth += BRACKETS.get(char, 0)
        return "".join(pieces[:-1])


def _as_json(arguments: str) -> str:
    """`a=1, b="x"` as a JSON object. Raises Malformed."""
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise Malformed
        values = {}
        for keyword in call.keywords:
            if keyword.arg is None:
                raise Malformed
            values[keyword.arg] = ast.literal_eval(keyword.value)
        return encodable(json.dumps(values, ensure_ascii=False, allow_nan=False))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise Malformed from None
