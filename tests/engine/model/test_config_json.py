"""What a checkpoint's config.json says, what it may not be, and what is taken from the weights' files instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from seesaw.engine.model.config_json import read_shape, shape_from_config
from seesaw.engine.parallel.layout import Layout
from seesaw.engine.values.errors import ConfigError
from tests.tiny import LocalModel, layout_error, write_tiny_checkpoint

LLAMA = {
    "model_type": "llama",
    "num_attention_heads": 4,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
}
FILE = "model.safetensors"
TOKENS = [5, 3, 110, 7, 42, 5]


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


def test_keys_that_are_null_or_unknown_are_as_none() -> None:
    more = dict.fromkeys(
        ("num_key_value_heads", "head_dim", "rope_scaling", "quantization_config", "tie_word_embeddings")
    )
    more |= {
        "use_cache": False,
        "pretraining_tp": 2,
        "generator": {"made": "by hand"},
        "max_position_embeddings": 4096.0,
    }
    shape = shape_from_config(LLAMA | more, "config.json")
    assert (shape.num_kv_heads, shape.head_dim, shape.tied, shape.max_position) == (4, 16, False, 4096)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"hidden_size": -64}, "hidden_size must be a whole number from 1"),
        ({"hidden_size": 64.5}, "hidden_size must be a whole number"),
        ({"hidden_size": True}, "hidden_size must be a whole number"),
        ({"hidden_size": 66}, "hidden_size must be a multiple of num_attention_heads"),
        ({"head_dim": 0}, "head_dim must be a whole number"),
        ({"head_dim": 15}, "heads of 15 dimensions"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 10000"),
        ({"intermediate_size": 10**400}, "intermediate_size must be"),
        ({"vocab_size": 0}, "vocab_size must be"),
        ({"vocab_size": [100]}, "vocab_size must be"),
        ({"vocab_size": None}, "lacks the key vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must be a divisor of num_attention_heads (4)"),
        ({"num_key_value_heads": 8}, "num_key_value_heads must be a divisor"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number above 0"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be"),
        ({"eos_token_id": -1}, "eos_token_id must be a token id"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id must be a token id"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
        ({"attention_bias": 1}, "attention_bias must be true or false"),
        ({"dtype": "float64"}, "'float64' is not supported"),
        ({"hidden_act": "gelu"}, "only silu"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights"),
    ],
)
def test_numbers_that_cannot_be(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        shape_from_config(LLAMA | config, "config.json")
    assert says in str(raised.value), raised.value


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "granite"}, "model_type 'granite', which differ"),
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM and model_type 'llama', which differ"),
        ({"model_type": "gpt2"}, "model_type 'gpt2', which is not supported: use a checkpoint of LlamaForCausalLM"),
        ({"architectures": ["LlamaModel"]}, "has LlamaModel, which is not supported"),
        ({"architectures": 5}, "has 5, which is not supported"),
        (
            {"architectures": ["LlavaForConditionalGeneration"], "text_config": LLAMA, "vision_config": {}},
            "a multimodal model's (text_config, vision_config)",
        ),
    ],
)
def test_models_that_are_not_ours(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        shape_from_config(LLAMA | config, "config.json")
    assert says in str(raised.value), raised.value


def test_quantized_weights_are_refused_by_name() -> None:
    """Which kinds there are is test_quantization_config's."""
    with pytest.raises(ConfigError, match=r"are quantized \(gptq\), .*: use one in fp8"):
        shape_from_config(LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "config.json")


def _edit(folder: Path, **changes: Any) -> None:
    """Change config.json; a key that becomes None goes."""
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def _rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors, whose names have __ for a dot; one that becomes None goes."""
    tensors: dict[str, Any] = load_file(folder / FILE)
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / FILE, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_without_a_dtype_the_weights_say_it(dtype: str, tmp_path: Path) -> None:
    """As transformers: the first floating tensor by name counts, whatever the others are."""
    from transformers import AutoModelForCausalLM

    folder = write_tiny_checkpoint(tmp_path, layers=1)
    weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(folder / FILE).items()}
    weights |= {"model.norm.weight": torch.ones(64), "an.index": torch.arange(3)}
    save_file(weights, folder / FILE, metadata={"format": "pt"})
    _edit(folder, dtype=None, torch_dtype=None)
    assert read_shape(folder).dtype == dtype
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == getattr(torch, dtype)
    assert read_shape(folder, "bfloat16").dtype == "bfloat16"
    _edit(folder, torch_dtype="float16")
    assert read_shape(folder).dtype == "float16"
    _edit(folder, dtype="bfloat16")  # transformers prefers it
    assert read_shape(folder).dtype == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    (folder / FILE).unlink()
    _edit(folder, dtype=None, torch_dtype=None)
    assert read_shape(folder).dtype == "bfloat16"


def test_a_tied_config_whose_file_has_another_head(tmp_path: Path) -> None:
    """transformers 5 takes the head that is there, and says so; before, it was the embedding."""
    folder = write_tiny_checkpoint(tmp_path, layers=2, tied=True)
    assert read_shape(folder).tied
    _rewrite(folder, lm_head__weight=torch.randn(211, 64) * 0.15)
    assert not read_shape(folder).tied
    assert layout_error(folder, [Layout(), Layout(tp=2), Layout(pp=2)], TOKENS) < 1e-4


def test_a_tied_config_whose_file_has_the_embedding_twice(tmp_path: Path) -> None:
    """As Qwen3's small ones."""
    folder = write_tiny_checkpoint(tmp_path, layers=2, tied=True)
    _rewrite(folder, lm_head__weight=load_file(folder / FILE)["model.embed_tokens.weight"].clone())
    assert read_shape(folder).tied
    assert layout_error(folder, [Layout(), Layout(tp=2), Layout(pp=2)], TOKENS) < 1e-4


def test_an_untied_config_without_a_head(tmp_path: Path) -> None:
    """transformers makes a random one."""
    folder = write_tiny_checkpoint(tmp_path, layers=1)
    _rewrite(folder, lm_head__weight=None)
    with pytest.raises(ConfigError, match=r"has no tensor lm_head\.weight"):
        LocalModel(folder, Layout())
