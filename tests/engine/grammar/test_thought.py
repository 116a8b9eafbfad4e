"""What a model thinks before a text that has a form."""

from __future__ import annotations

import numpy as np
import pytest

from seesaw.engine.grammar.matcher import MaskFiller, Matcher
from seesaw.engine.sampling.structured import Reasoning, StructuredOutputs
from seesaw.engine.sampling.token_masks import mask_words, tokens_of
from seesaw.engine.values.errors import IntegrityError
from tests.engine.grammar.test_grammars import EOS, VOCAB, grammars
from tests.engine.grammar.walks import allowed, follow


def thinking(regex: str, reasoning: Reasoning) -> Matcher:
    return grammars().start(StructuredOutputs("regex", regex)).matcher((), reasoning)


ANY = list(range(32 * mask_words(VOCAB)))
OPEN, CLOSE = 301, (302, 303)


def test_any_token_may_come_while_a_model_thinks() -> None:
    matcher = thinking("ab", Reasoning(CLOSE))
    for token in (97, 302, EOS, 302, 302):
        assert allowed(matcher, VOCAB) == ANY and matcher.is_thinking
        assert not matcher.is_over and matcher.failure is None
        matcher.accept(token)
    matcher.accept(303)
    assert not matcher.is_thinking and allowed(matcher, VOCAB) == [97]
    follow(matcher, b"ab")
    assert matcher.is_over


def test_a_model_that_may_think_begins_with_that_or_with_the_text() -> None:
    text, thought = thinking("ab", Reasoning(CLOSE, OPEN)), thinking("ab", Reasoning(CLOSE, OPEN))
    assert allowed(text, VOCAB) == [97, OPEN]
    text.accept(97)
    assert allowed(text, VOCAB) == [98]
    for token in (OPEN, 98, *CLOSE):
        thought.accept(token)
    assert allowed(thought, VOCAB) == [97]
    with pytest.raises(IntegrityError):  # it has thought
        thought.accept(OPEN)
    with pytest.raises(IntegrityError):
        thinking("ab", Reasoning(CLOSE, OPEN)).accept(98)


@pytest.mark.parametrize("slow_s", [0.0, 1e9])  # filled one by one, or together
def test_rows_that_think_are_filled_beside_others(slow_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seesaw.engine.grammar.matcher._SLOW_S", slow_s)
    matchers = [
        thinking("a", Reasoning(CLOSE)),
        thinking("b", Reasoning(CLOSE, OPEN)),
        None,
        thinking("c", Reasoning(CLOSE)),
    ]
    follow(matchers[3], CLOSE)
    filler, rows = MaskFiller(2), np.zeros((4, mask_words(VOCAB)), np.uint32)
    for _ in range(2):
        filler.fill_rows(matchers, rows)
        assert [tokens_of(row).tolist() for row in rows] == [ANY, [98, OPEN], ANY, [99]]
