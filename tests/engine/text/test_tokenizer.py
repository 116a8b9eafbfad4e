"""Where tokenizers come from, and what they make of odd texts."""

from __future__ import annotations

import io
import json
import logging
import random
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import sentencepiece
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Core

from seesaw.engine.text.tokenizer import ByteTokenizer, FastTokenizer, load_tokenizer
from seesaw.engine.values.errors import ConfigError, RequestError
from tests.engine.text.tokenizers import BYTE_LEVEL, BYTES, SENTENCEPIECE, byte_level


def test_a_folder_without_a_tokenizer_is_one_sentence_of_ours(tmp_path: object) -> None:
    with pytest.raises(ConfigError) as raised:
        load_tokenizer(str(tmp_path))
    assert str(raised.value) == (
        f"there is no tokenizer in {tmp_path} that transformers can load: "
        "name a folder or hub model that has one with --tokenizer"
    )


def test_a_hub_tokenizer_is_fetched_without_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
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


def test_a_pattern_that_gives_up_is_an_error_of_the_text() -> None:
    """Rust panics then, which is no Exception. Llama 3's pattern does so on spaces without end."""
    core = Core(models.BPE(vocab={"a": 0, " ": 1}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"(a+)+$"), "isolated")
    tokenizer = FastTokenizer(core)
    with pytest.raises(RequestError, match=r"cannot read this text \(.*retry-limit"):
        tokenizer.encode(["a" * 40 + " "])
    assert tokenizer.encode(["a"]) == [[0]]


class Counting:
    """A tokenizer's core, and which of its calls were made."""

    def __init__(self, core: Core) -> None:
        self._core, self.calls = core, list[str]()

    def __getattr__(self, name: str) -> object:
        self.calls.append(name)
        return getattr(self._core, name)


def test_long_texts_and_many_tokens_go_through_calls_that_let_other_threads_run() -> None:
    """Only those of batches do."""
    tokenizer = byte_level()
    core = tokenizer._core = Counting(tokenizer._core)
    (ids,) = tokenizer.encode(["ab" * 1000])
    assert tokenizer.decode(ids) == "ab" * 1000
    assert core.calls == ["encode_batch_fast", "decode_batch"]


# None begins with a space: there transformers 5 departs from sentencepiece, and it is the reference.
TEXTS = ["the cat sat", "two  spaces \n and a line", "日本 é", "a", ""]


@pytest.fixture(scope="module")
def model() -> bytes:
    """A sentencepiece model of Llama 2's kind: BPE, bytes for what it does not know."""
    words, draw, out = ["the", "cat", "sat", "on", "a", "mat", "river", "stone"], random.Random(0), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(draw.choices(words, k=8)) for _ in range(200)),
        model_writer=out,
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return out.getvalue()


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_a_sentencepiece_model_alone(model: bytes, model_type: str, tmp_path: Path) -> None:
    """A folder without a tokenizer.json gives the ids that sentencepiece gives, behind the BOS that it asks for."""
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False, **special}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, reference = load_tokenizer(str(tmp_path)), sentencepiece.SentencePieceProcessor(model_proto=model)
    assert tokenizer.vocab_size == reference.vocab_size()
    assert tokenizer.special_ids >= {reference.bos_id(), reference.eos_id()}
    for text in TEXTS:
        assert tokenizer.encode([text]) == [[reference.bos_id(), *reference.encode(text)]], text
        assert tokenizer.encode([text], add_special_tokens=False) == [reference.encode(text)]
        assert tokenizer.decode(reference.encode(text)) == reference.decode(reference.encode(text))


def test_a_sentencepiece_model_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match=r"no tokenizer in .* that transformers can load"):
        load_tokenizer(str(tmp_path))


def test_mistrals_own_tokenizer_alone(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    with pytest.raises(ConfigError, match=r"as tekken\.json alone, .* as tokenizer\.json with --tokenizer"):
        load_tokenizer(str(tmp_path))


def write_tokenizer(folder: Path, **changes: Any) -> str:
    """A tokenizer.json of a few letters, with some parts changed."""
    core = Core(models.BPE(vocab={letter: id for id, letter in enumerate("abc !")}, merges=[]))
    raw = json.loads(core.to_str())
    raw["model"] |= changes.pop("model", {})
    (folder / "tokenizer.json").write_text(json.dumps(raw | changes))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return str(folder)


ENDLESS = {"Regex": "(a+)+$"}  # the pattern engine gives up, and panics


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": {"type": "Split", "pattern": ENDLESS, "behavior": "Isolated", "invert": False}},
        {"normalizer": {"type": "Replace", "pattern": ENDLESS, "content": "x"}},
        {"model": {"unk_token": "<nowhere>"}},
    ],
    ids=["pattern", "normalizer", "unknown"],
)
def test_a_text_that_a_tokenizer_cannot_cope_with_is_the_clients_to_change(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, **changes))
    assert tokenizer.encode(["abc"]) == [[0, 1, 2]]
    for texts in (["a" * 40 + "!x"], ["abc", "a" * 40 + "!x"]):
        with pytest.raises(RequestError, match="tokenizer cannot read this text"):
            tokenizer.encode(texts)
    assert tokenizer.encode(["abc"]) == [[0, 1, 2]]


def test_tokens_that_a_tokenizer_cannot_decode_are_replaced(tmp_path: Path) -> None:
    decoder = {"type": "Replace", "pattern": ENDLESS, "content": "x"}
    vocab = {"a" * 40 + "!": 0, "b": 1}
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, decoder=decoder, model={"vocab": vocab}))
    assert [tokenizer.decode([id]) for id in (1, 0)] == ["b", "\ufffd"]


def test_a_template_that_names_an_unknown_token_is_refused_at_the_start(tmp_path: Path) -> None:
    sequence, begin = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<nowhere>", "type_id": 0}}
    processor = {"type": "TemplateProcessing", "single": [begin, sequence], "pair": [sequence], "special_tokens": {}}
    with pytest.raises(ConfigError, match=r"the tokenizer of .* cannot read any text .*: download it again"):
        load_tokenizer(write_tokenizer(tmp_path, post_processor=processor))
