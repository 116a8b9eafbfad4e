"""From the events of an answer to the items of a response's output. Used by `server.openai.responses`."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

from seesaw.server.ids import unique_id
from seesaw.server.openai.protocol.logprobs import ContentLogprob
from seesaw.server.openai.protocol.responses_answer import (
    ArgumentsDelta,
    ArgumentsDone,
    FunctionCall,
    ItemAdded,
    ItemDone,
    OutputItem,
    OutputMessage,
    OutputText,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    ReasoningItem,
    ReasoningText,
    StreamEvent,
    TextDelta,
    TextDone,
)
from seesaw.server.render.events import CallPiece, Content, Event, Reasoning

IN_PROGRESS = "in_progress"


class OutputWriter:
    """The items of one answer. Use: `write` all of its events, then `close` once; both give what clients of a stream
    are told. All events of the stream are numbered by `next_number`."""

    def __init__(self, make_call_id: Callable[[], str]) -> None:
        self.items: list[OutputItem] = []  # those that ended
        self._make_call_id = make_call_id
        self._numbers = itertools.count()
        self._open: _OpenItem | None = None

    def next_number(self) -> int:
        """The sequence number of the event that is made next."""
        return next(self._numbers)

    def write(self, event: Event, logprobs: Sequence[ContentLogprob] = ()) -> Iterator[StreamEvent]:
        """`logprobs`: of the tokens of a piece of content."""
        match event:
            case Content(text):
                if not isinstance(self._open, _OpenMessage):
                    yield from self._begin(_OpenMessage)
            case Reasoning(text):
                if not isinstance(self._open, _OpenReasoning):
                    yield from self._begin(_OpenReasoning)
            case CallPiece(_, None, text):
                pass
            case CallPiece(_, name, text):
                yield from self._begin(partial(_OpenCall, call_id=self._make_call_id(), name=name or ""))
        assert self._open is not None
        if text:
            yield self._open.add(text, logprobs)

    def close(self, status: str, logprobs: Sequence[ContentLogprob] = ()) -> Iterator[StreamEvent]:
        """End the last item, `completed` or `incomplete`. An answer without anything is an empty message. `logprobs`:
        of tokens behind a message that had no text."""
        if self._open is None:
            yield from self._begin(_OpenMessage)
        if logprobs and isinstance(self._open, _OpenMessage):
            yield self._open.add("", logprobs)
        yield from self._end(status)

    def _begin(self, make: Callable[[int, Callable[[], int]], _OpenItem]) -> Iterator[StreamEvent]:
        yield from self._end("completed")
        self._open = make(len(self.items), self.next_number)
        yield from self._open.begin()

    def _end(self, status: str) -> Iterator[StreamEvent]:
        if self._open is None:
            return
        yield from self._open.end()
        item = self._open.item(status)
        yield ItemDone(sequence_number=self.next_number(), output_index=len(self.items), item=item)
        self.items.append(item)
        self._open = None


class _OpenItem(ABC):
    """The item that is being written."""

    prefix: ClassVar[str]  # of its id

    def __init__(self, index: int, next_number: Callable[[], int]) -> None:
        """`index`: its place in the output."""
        self._index = index
        self._next_number = next_number
        self._pieces: list[str] = []
        self._logprobs: list[ContentLogprob] = []
        self._id = f"{self.prefix}_{unique_id()}"

    def begin(self) -> Iterator[StreamEvent]:
        yield ItemAdded(sequence_number=self._next_number(), output_index=self._index, item=self.item(IN_PROGRESS))

    def add(self, text: str, logprobs: Sequence[ContentLogprob]) -> StreamEvent:
        """`logprobs`: only a message has any."""
        self._pieces.append(text)
        self._logprobs += logprobs
        return self._delta(text, logprobs)

    @abstractmethod
    def end(self) -> Iterator[StreamEvent]:
        """What precedes the event that has the whole item."""

    @abstractmethod
    def item(self, status: str) -> OutputItem:
        """As it is now."""

    @abstractmethod
    def _delta(self, text: str, logprobs: Sequence[ContentLogprob]) -> StreamEvent: ...

    def _text(self) -> str:
        return "".join(self._pieces)

    def _place(self) -> dict[str, Any]:
        """What all events of the item have."""
        return {"sequence_number": self._next_number(), "item_id": self._id, "output_index": self._index}


class _OpenText(_OpenItem):
    """An item whose content is one part."""

    part: ClassVar[type[Any]]
    whole: ClassVar[type[Any]]
    delta: ClassVar[type[Any]]
    done: ClassVar[type[Any]]

    def begin(self) -> Iterator[StreamEvent]:
        yield from super().begin()
        yield PartAdded(**self._place(), part=self.part(text=""))

    def end(self) -> Iterator[StreamEvent]:
        yield self.done(**self._place(), **self._content())
        yield PartDone(**self._place(), part=self.part(**self._content()))

    def item(self, status: str) -> OutputItem:
        content = [] if status == IN_PROGRESS else [self.part(**self._content())]
        return self.whole(id=self._id, status=status, content=content)  # type: ignore[no-any-return]

    def _delta(self, text: str, logprobs: Sequence[ContentLogprob]) -> StreamEvent:
        return self.delta(**self._place(), delta=text)  # type: ignore[no-any-return]

    def _content(self) -> dict[str, Any]:
        """What its part has, and what is said when that is done."""
        return {"text": self._text()}


class _OpenMessage(_OpenText):
    prefix, part, whole, delta, done = "msg", OutputText, OutputMessage, TextDelta, TextDone

    def _delta(self, text: str, logprobs: Sequence[ContentLogprob]) -> StreamEvent:
        return TextDelta(**self._place(), delta=text, logprobs=[*logprobs])

    def _content(self) -> dict[str, Any]:
        return {"text": self._text(), "logprobs": self._logprobs}


class _OpenReasoning(_OpenText):
    prefix, part, whole, delta, done = "rs", ReasoningText, ReasoningItem, ReasoningDelta, ReasoningDone


class _OpenCall(_OpenItem):
    """`name` and `call_id` are the function's and the call's; clients send the output of a call with the latter."""

    prefix = "fc"

    def __init__(self, index: int, next_number: Callable[[], int], call_id: str, name: str) -> None:
        super().__init__(index, next_number)
        self._call_id = call_id
        self._name = name

    def end(self) -> Iterator[StreamEvent]:
        yield ArgumentsDone(**self._place(), name=self._name, arguments=self._text())

    def item(self, status: str) -> OutputItem:
        return FunctionCall(id=self._id, status=status, call_id=self._call_id, name=self._name, arguments=self._text())

    def _delta(self, text: str, logprobs: Sequence[ContentLogprob]) -> StreamEvent:
        return ArgumentsDelta(**self._place(), delta=text)
