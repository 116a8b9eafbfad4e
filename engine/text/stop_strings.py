"""Strings that end a text wherever they come up in it. Used by `engine.text.output_text`."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Cuts a text that comes in pieces at the first of some strings, wherever the pieces' borders are.

    Of several occurrences the one that ends first counts, then the one that begins first, so that the result
    does not depend on how the text was cut. Holds back what may be the beginning of a stop string.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.matched: str | None = None

    def push(self, piece: str) -> str:
        """The text that may be shown now. Once `matched` is set, nothing more comes."""
        if not self._stops or not piece:
            return piece
        text = self._held + piece
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, start, self.matched = min(found)
            self._held = ""
            return text[: end if self._include else start]
        cut = self._first_possible_start(text)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was held back, once no text follows."""
        held, self._held = self._held, ""
        return held

    def _first_possible_start(self, text: str) -> int:
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stops):
                return start
        return len(text)
