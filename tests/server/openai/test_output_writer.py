"""Which events of an answer begin an item of a response's output, and which go on with one."""

from __future__ import annotations

import itertools

import pytest

from seesaw.server.openai.output_writer import OutputWriter
from seesaw.server.openai.protocol.responses_answer import FunctionCall, OutputItem, OutputMessage, ReasoningItem
from seesaw.server.render.events import CallPiece, Content, Event, Reasoning


def shown(item: OutputItem) -> tuple[str, str]:
    """An item's kind and text."""
    match item:
        case FunctionCall():
            return item.call_id, item.arguments
        case OutputMessage() | ReasoningItem():
            return item.id.split("_")[0], "".join(part.text for part in item.content)


@pytest.mark.parametrize(
    ("events", "items"),
    [
        ([], [("msg", "")]),
        ([Content("a"), Content("b")], [("msg", "ab")]),
        ([Reasoning("a"), Reasoning("b"), Content("c")], [("rs", "ab"), ("msg", "c")]),
        ([CallPiece(0, "f", ""), CallPiece(0, None, "{"), CallPiece(0, None, "}")], [("call0", "{}")]),
        ([CallPiece(0, "f", "{}"), CallPiece(1, "f", "[]")], [("call0", "{}"), ("call1", "[]")]),
        ([Content("a"), CallPiece(0, "f", "{}"), Content("b")], [("msg", "a"), ("call0", "{}"), ("msg", "b")]),
    ],
)
def test_items(events: list[Event], items: list[tuple[str, str]]) -> None:
    numbers = itertools.count()
    writer = OutputWriter(lambda: f"call{next(numbers)}")
    written = [each for event in events for each in writer.write(event)] + [*writer.close("incomplete")]
    assert [shown(item) for item in writer.items] == items
    assert [item.status for item in writer.items] == ["completed"] * (len(items) - 1) + ["incomplete"]
    assert [each.sequence_number for each in written] == list(range(len(written)))
    assert writer.next_number() == len(written)
