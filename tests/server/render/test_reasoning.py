"""The reasoning parser: what it finds, and that it does not depend on how the text was cut."""

from __future__ import annotations

import pytest

from seesaw.server.render.events import Content, Event, Reasoning
from seesaw.server.render.reasoning import ThinkParser

CASES = [
    (True, "a</think>b", "a", "b"),
    (True, "<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
    (True, " \n<think>a</think>", "a", ""),
    (True, "a <b </thin", "a <b </thin", ""),
    (True, " <thi", " <thi", ""),
    (True, "", "", ""),
    (False, "<think>a</think>\nb", "a", "\nb"),
    (False, "<think>", "", ""),
    (False, " <thi", "", " <thi"),
    (False, "\n", "", "\n"),
    (False, "b <think>a</think>", "", "b <think>a</think>"),
    (False, "<think></think></think>", "", "</think>"),
]


def read(starts_inside: bool, *pieces: str) -> tuple[str, str]:
    parser = ThinkParser(starts_inside)
    events: list[Event] = [event for piece in pieces for event in parser.push(piece)] + parser.flush()
    assert all(isinstance(event, Content | Reasoning) and event.text for event in events)
    reasoning = [event.text for event in events if isinstance(event, Reasoning)]
    content = [event.text for event in events if isinstance(event, Content)]
    return "".join(reasoning), "".join(content)


@pytest.mark.parametrize(("starts_inside", "text", "reasoning", "content"), CASES)
def test_texts_split_at_every_position_give_the_same(
    starts_inside: bool, text: str, reasoning: str, content: str
) -> None:
    for at in range(len(text) + 1):
        assert read(starts_inside, text[:at], text[at:]) == (reasoning, content), at
    assert read(starts_inside, *text) == (reasoning, content)


def test_reasoning_is_passed_on_as_it_comes() -> None:
    parser = ThinkParser(False)
    assert parser.push("<think>") == []
    assert parser.push("a <") == [Reasoning("a ")]
    assert parser.push("b </th") == [Reasoning("<b ")]
    assert parser.push("ink>c") == [Content("c")]
    assert parser.push("d") == [Content("d")]
