"""How answers are to be read: the operator's parsers, and one choice's text on its way through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from seesaw.engine.sampling.structured import Reasoning, StructuredOutputs
from seesaw.engine.text.tokenizer import Tokenizer
from seesaw.server.render.events import Content, Event
from seesaw.server.render.reasoning import CLOSE, OPEN, REASONING_PARSERS, ThinkParser
from seesaw.server.render.tools import TOOL_PARSERS, ToolParser
from seesaw.server.render.tools.forced import Signature, forced_calls


@dataclass(frozen=True)
class AnswerFormat:
    """What the model's answers may hold beside text."""

    tool_parser: type[ToolParser] | None = None
    reasoning_parser: Callable[[str], ThinkParser] | None = None
    shows_calls: bool = False  # a marker of the tool parser is a special token, which must not be skipped
    shows_reasoning: bool = False
    parser_name: str = "none"
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    opening: tuple[int, ...] = ()  # the tokens of the markers of reasoning
    closing: tuple[int, ...] = ()
    only_calls: bool = False  # a form sees to it: what begins no call is one that was cut by length, and nobody's text

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, tool_parser: str, reasoning_parser: str, *, only_calls: bool = False
    ) -> AnswerFormat:
        """Of parsers by name; `none` and other names stand for none."""
        tools = TOOL_PARSERS.get(tool_parser)
        special = {tokenizer.decode([id]): id for id in tokenizer.special_ids} if tools or reasoning_parser else {}
        opening, closing = map(tuple, tokenizer.encode([OPEN, CLOSE], add_special_tokens=False))
        return cls(
            tools,
            REASONING_PARSERS.get(reasoning_parser),
            shows_calls=tools is not None and not special.keys().isdisjoint(tools.markers),
            shows_reasoning=not special.keys().isdisjoint((OPEN, CLOSE)),
            parser_name=tool_parser,
            special_tokens=special,
            opening=opening,
            closing=closing,
            only_calls=only_calls,
        )

    def calls(self, functions: Sequence[Signature], *, several: bool) -> StructuredOutputs:
        """The form of answers that are calls of these functions, as the tool parser reads them. Raises RequestError."""
        return forced_calls(self.parser_name, functions, self.special_tokens, several=several)

    def reasoning(self, prompt: str) -> Reasoning | None:
        """What may come before an answer to this prompt that has a form; None if nothing may: it thinks of nothing, or
        the prompt has the end of it."""
        if self.reasoning_parser is None:
            return None
        if self.reasoning_parser(prompt).is_inside:
            return Reasoning(self.closing)
        # A model that begins by itself can be let begin with one token only.
        if len(self.opening) != 1 or prompt.rstrip().endswith(CLOSE):
            return None
        return Reasoning(self.closing, self.opening[0])

    @property
    def without_reasoning(self) -> AnswerFormat:
        """For answers whose form leaves no room to think."""
        return replace(self, reasoning_parser=None)

    def needs_special_tokens(self, with_tools: bool) -> bool:
        """Whether its parsers look for special tokens."""
        return (with_tools and self.shows_calls) or (self.reasoning_parser is not None and self.shows_reasoning)

    def reader(self, prompt: str, with_tools: bool) -> AnswerReader:
        """For one choice of the answer to a prompt."""
        return AnswerReader(
            self.reasoning_parser(prompt) if self.reasoning_parser else None,
            self.tool_parser() if self.tool_parser and with_tools else None,
            self.only_calls,
        )


class AnswerReader:
    """One growing text as events. Use: `push` all of it in pieces, then `flush` once."""

    def __init__(self, reasoning: ThinkParser | None, tools: ToolParser | None, only_calls: bool = False) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self._only_calls = only_calls

    @property
    def is_thinking(self) -> bool:
        """Whether the text so far ends in reasoning."""
        return self._reasoning is not None and self._reasoning.is_inside

    @property
    def num_calls(self) -> int:
        """Calls of tools so far."""
        return self._tools.num_calls if self._tools else 0

    def push(self, text: str) -> list[Event]:
        """The events that this piece completes."""
        events: list[Event] = self._reasoning.push(text) if self._reasoning else [Content(text)] if text else []
        return self._find_calls(events)

    def flush(self) -> list[Event]:
        """The last events, once no text follows."""
        events = self._find_calls(self._reasoning.flush() if self._reasoning else [])
        return events + (self._of_calls(self._tools.flush()) if self._tools else [])

    def make_call_id(self) -> str:
        """For a call of the tool parser."""
        assert self._tools is not None
        return self._tools.make_id()

    def _find_calls(self, events: list[Event]) -> list[Event]:
        if self._tools is None:
            return events
        return [
            found
            for event in events
            for found in (self._of_calls(self._tools.push(event.text)) if isinstance(event, Content) else [event])
        ]

    def _of_calls(self, events: list[Event]) -> list[Event]:
        return [event for event in events if not (self._only_calls and isinstance(event, Content))]
