"""Detokenizing in pieces equals detokenizing at once, and stop strings do not depend on the pieces."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from engine.text import (
    CONTEXT_TOKENS,
    MAX_PENDING_TOKENS,
    ByteTokenizer,
    Detokenizer,
    FastTokenizer,
    OutputText,
    StopStrings,
    load_tokenizer,
)
from engine.values.errors import ConfigError
from engine.wire.messages import FinishReason, Output


def byte_level() -> FastTokenizer:
    """GPT-2's and Llama 3's kind: a token is any run of bytes. Some tokens hold parts of two characters."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    shown = dict(zip(sorted(range(256), key=lambda b: (not _printable(b), b)), _ordered(alphabet), strict=True))
    world = "世界".encode()
    words = [world[:2], world[2:4], world[4:], b"ab", " née".encode()[:3]]
    vocab = {shown[b]: b for b in range(256)} | {
        "".join(shown[b] for b in word): 256 + i for i, word in enumerate(words)
    }
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken("<|end|>", special=True)])
    return FastTokenizer(core)


def _printable(b: int) -> bool:
    return 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255


def _ordered(alphabet: list[str]) -> list[str]:
    """GPT-2's table: printable bytes are themselves, the others follow from U+0100."""
    return sorted(alphabet, key=ord)


def sentencepiece() -> FastTokenizer:
    """Llama 2's kind: words with a mark for the space, and bytes for what is not in the vocabulary."""
    vocab = {"<unk>": 0, "▁": 1, "▁the": 2, "cat": 3, "▁cat": 4} | {f"<0x{b:02X}>": 5 + b for b in range(256)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return FastTokenizer(core)


BYTE_LEVEL, SENTENCEPIECE, BYTES = byte_level(), sentencepiece(), ByteTokenizer()


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


def cut(text: str, sizes: Sequence[int]) -> list[str]:
    result, at = [], 0
    for size in sizes:
        result.append(text[at : at + size])
        at += size
    return [*result, text[at:]]


@given(
    st.text("abc", max_size=25),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(0, 4), max_size=10),
    st.booleans(),
)
def test_stop_strings_cut_at_the_first_that_ends_wherever_pieces_end(
    text: str, stops: list[str], sizes: list[int], include: bool
) -> None:
    matcher = StopStrings(stops, include)
    shown = ""
    for piece in cut(text, sizes):
        shown += matcher.push(piece)
        assert text.startswith(shown)
        if matcher.matched is not None:
            break
    else:
        shown += matcher.flush()
    ends = [end for end in range(1, len(text) + 1) if text[:end].endswith(tuple(stops))]
    if not ends:
        assert (shown, matcher.matched) == (text, None)
    else:
        stop = max((s for s in stops if text[: ends[0]].endswith(s)), key=len)
        assert matcher.matched == stop
        assert shown == text[: ends[0] if include else ends[0] - len(stop)]


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    matcher = StopStrings(["\n\n", "END"])
    assert [matcher.push(piece) for piece in ("one\n", "two", "E", "N", "E")] == ["one", "\ntwo", "", "", "EN"]
    assert matcher.flush() == "E"


def output(text: str | bytes, finish: FinishReason | None = None, stop_token: int | None = None) -> Output:
    return Output("id", 0, list(text.encode() if isinstance(text, str) else text), finish, stop_token)


def test_a_stop_string_ends_a_sequence_and_counts_its_tokens() -> None:
    for batches in (["ab世", "界cd"], ["ab世界cd"], list("ab世界cd")):
        text = OutputText(BYTES, stop=["界c"])
        shown = ""
        for batch in batches:
            shown += text.push(output(batch))
            if text.finish_reason is not None:
                break
        assert (shown, text.finish_reason, text.stop_reason) == ("ab世", FinishReason.STOP, "界c")
        assert text.num_tokens == len("ab世界c".encode())


def test_a_stop_token_is_counted_but_not_shown_unless_asked_for() -> None:
    for include, shown in ((False, "ab"), (True, "ab!")):
        text = OutputText(BYTES, stop_token_ids=[ord("!")], include_stop=include)
        assert text.push(output("ab!", FinishReason.STOP, ord("!"))) == shown
        assert (text.num_tokens, text.stop_reason) == (3, ord("!"))
    eos = OutputText(BYTES)
    assert eos.push(output("ab!", FinishReason.STOP, ord("!"))) == "ab"
    assert eos.stop_reason is None  # an end of sequence is not something the client named


def test_the_end_releases_what_was_held_back() -> None:
    text = OutputText(BYTES, stop=["xyz"])
    assert text.push(output("a xy")) == "a "
    assert text.push(output(b"\xe4", FinishReason.LENGTH)) == "xy\ufffd"
    assert text.finish_reason is FinishReason.LENGTH


def test_a_folder_without_a_tokenizer_is_one_sentence_of_ours(tmp_path: object) -> None:
    with pytest.raises(ConfigError) as raised:
        load_tokenizer(str(tmp_path))
    assert str(raised.value) == (
        f"there is no tokenizer in {tmp_path} that transformers can load: "
        "name a folder or hub model that has one with --tokenizer"
    )


def test_a_hub_tokenizer_is_fetched_without_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        assert "*.safetensors" not in allow_patterns
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(
        ConfigError, match=r"its tokenizer could not be fetched from the hub .*`bytes` with --tokenizer"
    ):
        load_tokenizer("some/llama")
    assert not logging.getLogger("huggingface_hub").handlers  # the root logger's prints each line once


@pytest.mark.parametrize("tokenizer", [BYTES, BYTE_LEVEL, SENTENCEPIECE])
def test_half_a_surrogate_pair_is_replaced(tokenizer: FastTokenizer | ByteTokenizer) -> None:
    assert tokenizer.encode(["a\ud800b", "c\udfff"]) == tokenizer.encode(["a?b", "c?"])
    assert tokenizer.encode(["a\ud800b"]) == tokenizer.encode(["a?b"])


def test_the_longest_token_bounds_a_texts_length() -> None:
    assert [each.max_token_chars for each in (BYTES, BYTE_LEVEL, SENTENCEPIECE)] == [1, len("<|end|>"), len("<0x00>")]
