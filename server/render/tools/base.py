"""The interface of all tool parsers, and how they read: character by character, with what was read in hand.

A parser is a coroutine that asks for characters, so that its grammar reads from top to bottom and does not depend on
how a text was cut. What it has read and not made into events is in hand, and comes back as content when it turns out
to be no call. Once a call has begun, which is when its name is known and its arguments begin, they are passed on to
the letter as they come, up to their end: whether they are valid JSON is up to the model, as with OpenAI.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from typing import ClassVar, TypeVar

from seesaw.server.ids import unique_id
from seesaw.server.render.events import CallPiece, Content, Event

T = TypeVar("T")
Reading = Generator[None, str, T]  # is sent one character after the other; an empty one is the end of the text


class Malformed(Exception):
    """What is in hand is no call."""


class _End(Exception):
    """The text has ended."""


class ToolParser(ABC):
    """Finds the calls of tools in one growing text. Use: `push` all of it in pieces, then `flush` once."""

    # Texts that it looks for. Where these are special tokens, they must not be skipped.
    markers: ClassVar[tuple[str, ...]] = ()
    # Whether calls may come after text that was none; else all that follows such text is text.
    resumes: ClassVar[bool] = False

    def __init__(self) -> None:
        self.num_calls = 0
        self._in_hand: list[str] = []
        self._again: deque[str] = deque()  # to be read once more
        self._passed = 0  # characters in hand that are text for sure if it is no call
        self._events: list[tuple[int | None, str | None, list[str]]] = []  # call or None, its name, and fragments
        self._is_plain = False
        self._reading = self._run()
        next(self._reading)

    def push(self, text: str) -> list[Event]:
        """The events that this piece completes."""
        if self._is_plain:
            return [Content(text)] if text else []
        for char in text:
            self._reading.send(char)
        return self._take()

    def flush(self) -> list[Event]:
        """The last events, once no text follows."""
        if not self._is_plain:
            with suppress(StopIteration):
                self._reading.send("")
        return self._take()

    @staticmethod
    def make_id() -> str:
        """An id for a call, which the client sends back with the tool's result."""
        return f"call_{unique_id()[:24]}"

    @abstractmethod
    def _read(self) -> Reading[None]:
        """Read text and calls for ever. May raise Malformed, and is begun anew then if the parser `resumes`."""

    # For subclasses.

    def _char(self) -> Reading[str]:
        """The next character, which is in hand then."""
        char = self._again.popleft() if self._again else (yield)
        if not char:
            raise _End
        self._in_hand.append(char)
        return char

    def _after_space(self) -> Reading[str]:
        """The next character that is no white space."""
        while (char := (yield from self._char())).isspace():
            pass
        return char

    def _put_back(self) -> None:
        """Let the last character be read again."""
        self._again.appendleft(self._in_hand.pop())

    def _drop(self) -> None:
        """What is in hand is dealt with."""
        self._in_hand.clear()
        self._passed = 0

    def _text_before(self, marker: str) -> Reading[None]:
        """Content up to a marker and the white space before it, which stay in hand."""
        while True:
            char = yield from self._char()
            if len(self._in_hand) == 1 and char != marker[0] and not char.isspace():
                self._give_back(1)
                continue
            while not marker.startswith("".join(self._in_hand).lstrip()):
                self._give_back(1)
            if "".join(self._in_hand).lstrip() == marker:
                self._passed = len(self._in_hand)
                return

    def _begin_call(self, name: str) -> None:
        self._drop()
        self._events.append((self.num_calls, name, []))
        self.num_calls += 1

    def _add_arguments(self, text: str) -> None:
        """Of the call that was begun last."""
        self._drop()
        index = self.num_calls - 1
        if not self._events or self._events[-1][:2] != (index, None):
            self._events.append((index, None, []))
        self._events[-1][2].append(text)

    # How the reading goes.

    def _run(self) -> Reading[None]:
        while True:
            try:
                yield from self._read()
            except _End:
                if not self.num_calls or "".join(self._in_hand).strip():
                    self._give_back(len(self._in_hand))
                return
            except Malformed:
                if not self.resumes:
                    break
                rest = self._in_hand[self._passed :]
                self._give_back(self._passed)
                self._in_hand.clear()
                self._again.extendleft(reversed(rest))
        self._is_plain = True
        self._again.extendleft(reversed(self._in_hand))
        self._in_hand.clear()
        with suppress(_End):
            while True:
                yield from self._char()
                self._give_back(1)

    def _give_back(self, count: int) -> None:
        """The first so many characters in hand are content."""
        if count:
            if not self._events or self._events[-1][0] is not None:
                self._events.append((None, None, []))
            self._events[-1][2].extend(self._in_hand[:count])
            del self._in_hand[:count]
        self._passed = 0

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return [
            Content("".join(pieces)) if index is None else CallPiece(index, name, "".join(pieces))
            for index, name, pieces in events
        ]


def encodable(text: str) -> str:
    """The text, with `?` for each half of a surrogate pair, which escapes may stand for and no UTF-8 can hold."""
    return text.encode(errors="replace").decode()
