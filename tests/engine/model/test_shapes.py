"""What a checkpoint's config.json may not be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.model.config_json import read_shape
from engine.values.errors import ConfigError

LLAMA = {
    "model_type": "llama",
    "num_attention_heads": 4,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "config.json is not valid JSON"),
        (b"\xff\xfe{}", "config.json is not valid JSON"),
        (b"[" * 200_000, "config.json is not valid JSON"),
        (b"[]", "config.json holds no JSON object"),
        (json.dumps(LLAMA | {"hidden_size": "x"}).encode(), "config.json has a value that cannot be"),
        (json.dumps(LLAMA | {"num_attention_heads": 0}).encode(), "config.json has a value that cannot be"),
        (json.dumps(LLAMA | {"rope_scaling": 3}).encode(), "config.json has a value that cannot be"),
    ],
    ids=["torn", "binary", "endless", "a list", "a word for a number", "no heads", "a number for a table"],
)
def test_a_broken_config_is_one_sentence(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        read_shape(tmp_path)


def test_so_is_a_broken_generation_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"generation_config.json holds no JSON object"):
        read_shape(tmp_path)


def test_sound_ones_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7]}')
    shape = read_shape(tmp_path)
    assert (shape.hidden, shape.eos_token_ids) == (64, (7,))
