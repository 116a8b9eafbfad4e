"""What a model thinks before it answers: the text between `<think>` and `</think>`, by `--reasoning-parser`."""

from __future__ import annotations

from seesaw.server.render.events import Content, Event, Reasoning

OPEN, CLOSE = "<think>", "</think>"


class ThinkParser:
    """Parts one growing text at `</think>`. Use: `push` all of it in pieces, then `flush` once.

    Without an end it is all reasoning, as when the answer was cut off by its length.
    """

    def __init__(self, starts_inside: bool) -> None:
        """`starts_inside`: the text is reasoning from the start, also if it does not begin with `<think>`."""
        self._starts_inside = starts_inside
        self._is_inside: bool | None = None  # None: not known yet
        self._held = ""

    @property
    def is_inside(self) -> bool:
        """Whether the text so far ends in reasoning, as far as is known."""
        return self._starts_inside if self._is_inside is None else self._is_inside

    def push(self, text: str) -> list[Event]:
        """The events that this piece completes."""
        text = self._held + text
        self._held = ""
        if self._is_inside is None:
            begins = text.lstrip()
            if OPEN.startswith(begins) and begins != OPEN:
                self._held = text
                return []
            self._is_inside = self._starts_inside or begins.startswith(OPEN)
            if begins.startswith(OPEN):
                text = begins.removeprefix(OPEN)
        if not self._is_inside:
            return [Content(text)] if text else []
        at = text.find(CLOSE)
        if at < 0:
            at = len(text) - _overlap(text)
            self._held = text[at:]
            return [Reasoning(text[:at])] if at else []
        self._is_inside = False
        events: list[Event] = [Reasoning(text[:at]), Content(text[at + len(CLOSE) :])]
        return [event for event in events if event.text]  # type: ignore[union-attr]

    def flush(self) -> list[Event]:
        """What was held back, once no text follows."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [Reasoning(held) if self.is_inside else Content(held)]


def deepseek_r1(prompt: str) -> ThinkParser:
    """Thinks always, unless the prompt has the end of it: the template may have begun it or not."""
    return ThinkParser(not prompt.rstrip().endswith(CLOSE))


def qwen3(prompt: str) -> ThinkParser:
    """Thinks if it says so, or if the template has begun it."""
    return ThinkParser(prompt.rstrip().endswith(OPEN))


# What makes a parser for the answer to a prompt, by its name.
REASONING_PARSERS = {"deepseek_r1": deepseek_r1, "qwen3": qwen3}


def _overlap(text: str) -> int:
    """How many of the last characters may be the beginning of `</think>`."""
    return next(size for size in range(len(CLOSE) - 1, -1, -1) if text.endswith(CLOSE[:size]))
