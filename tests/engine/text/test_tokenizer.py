"""Where tokenizers come from, and what they make of odd texts."""

from __future__ import annotations

import logging

import huggingface_hub
import pytest

from engine.text.tokenizer import ByteTokenizer, FastTokenizer, load_tokenizer
from engine.values.errors import ConfigError
from tests.engine.text.tokenizers import BYTE_LEVEL, BYTES, SENTENCEPIECE


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
