"""How far a sequence has come with what it thinks before its text begins. Used by `engine.grammar.matcher`."""

from __future__ import annotations

from collections import deque

from seesaw.engine.sampling.structured import Reasoning


class Thought:
    """Told all tokens in order, until one is none of its own."""

    def __init__(self, reasoning: Reasoning) -> None:
        self.begin = reasoning.begin
        self._end = reasoning.end
        self._last: deque[int] = deque(maxlen=len(reasoning.end))
        self.may_begin = reasoning.begin is not None  # with the next token
        self.is_open = not self.may_begin  # any token may follow

    def takes(self, token: int) -> bool:
        """Whether this token is thought, and not of the text."""
        if self.may_begin:
            self.may_begin = False
            self.is_open = token == self.begin
            return self.is_open
        if not self.is_open:
            return False
        self._last.append(token)
        self.is_open = tuple(self._last) != self._end
        return True
