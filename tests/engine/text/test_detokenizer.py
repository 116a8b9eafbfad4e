"""Detokenizing in pieces equals detokenizing at once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.engine.text.detokenizer import CONTEXT_TOKENS, MAX_PENDING_TOKENS, Detokenizer
from seesaw.engine.text.tokenizer import ByteTokenizer, FastTokenizer
from tests.engine.text.tokenizers import BYTE_LEVEL, BYTES, SENTENCEPIECE


def pieces(tokenizer: FastTokenizer | ByteTokenizer, tokens: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


junk = st.binary(min_size=1, max_size=MAX_PENDING_TOKENS // 2)
mixed = st.lists(st.text(max_size=8).map(str.encode) | junk.map(lambda b: b + b"."), max_size=8).map(b"".join)


@given(mixed)
def test_any_bytes_come_out_as_if_decoded_at_once(data: bytes) -> None:
    for tokenizer in (BYTES, BYTE_LEVEL):
        assert "".join(pieces(tokenizer, list(data))) == data.decode(errors="replace")


@given(st.text(max_size=30))
def test_no_piece_of_a_text_ends_in_half_a_character(text: str) -> None:
    text = text.replace("\ufffd", "")
    for tokenizer, offset in ((BYTES, 0), (BYTE_LEVEL, 0), (SENTENCEPIECE, 5)):
        got = pieces(tokenizer, [offset + b for b in text.encode()], prompt=[offset + ord(".")])
        assert "\ufffd" not in "".join(got)
        assert "".join(got) == text
        assert got[-1] == ""  # nothing was held back longer than needed


@given(st.lists(st.integers(0, 261), max_size=MAX_PENDING_TOKENS - 1))
def test_tokens_that_share_characters(tokens: list[int]) -> None:
    special = BYTE_LEVEL.special_ids
    assert "".join(pieces(BYTE_LEVEL, tokens)) == BYTE_LEVEL.decode([t for t in tokens if t not in special])


def test_a_character_over_three_tokens_comes_with_its_last() -> None:
    assert pieces(BYTE_LEVEL, [256, 257, 258]) == ["", "世", "界", ""]
    assert pieces(BYTE_LEVEL, [256, 257]) == ["", "世", "\ufffd"]  # it never came: said at the end


def test_the_space_before_a_first_word_depends_on_the_prompt() -> None:
    assert pieces(SENTENCEPIECE, [4, 4], prompt=[2]) == [" cat", " cat", ""]
    assert pieces(SENTENCEPIECE, [4, 3, 1, 3]) == ["cat", "cat", " ", "cat", ""]


def test_special_and_unknown_tokens_are_skipped_or_shown() -> None:
    assert pieces(BYTE_LEVEL, [97, 261, 98, 9999]) == ["a", "", "b", "", ""]
    shown = Detokenizer(BYTE_LEVEL, skip_special_tokens=False)
    assert [shown.push(token) for token in (97, 261, 98)] == ["a", "<|end|>", "b"]


class CountingTokenizer(ByteTokenizer):
    most = 0

    def decode(self, tokens: Sequence[int]) -> str:
        self.most = max(self.most, len(tokens))
        return super().decode(tokens)


@pytest.mark.parametrize("data", [b"\xff" * 500, b"word " * 100, "世界".encode() * 80])
def test_a_token_costs_the_same_however_long_the_sequence(data: bytes) -> None:
    tokenizer = CountingTokenizer()
    detokenizer = Detokenizer(tokenizer, prompt=list(data))
    for token in data:
        detokenizer.push(token)
    assert tokenizer.most <= CONTEXT_TOKENS + 2 * MAX_PENDING_TOKENS
