"""Which quantized checkpoints are read, and what is said of the others."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from seesaw.engine.model.quantization import Quantization
from seesaw.engine.model.quantization_config import read_quantization
from seesaw.engine.values.errors import ConfigError

# As Qwen3-8B-FP8, DeepSeek, RedHatAI's and AutoFP8's checkpoints have them.
BLOCKS = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"],
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
AUTO_FP8 = {"activation_scheme": "static", "quant_method": "fp8", "ignored_layers": ["lm_head"]}


def compressed(strategy: str = "channel", dynamic: bool = True, **changes: Any) -> dict[str, Any]:
    numbers = {"num_bits": 8, "type": "float", "symmetric": True, "block_structure": None, "group_size": None}
    weights = {**numbers, "strategy": strategy, "dynamic": False}
    if strategy == "block":
        weights["block_structure"] = [128, 128]
    activations = {**numbers, "strategy": "token" if dynamic else "tensor", "dynamic": dynamic}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations}}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": groups,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        **changes,
    }


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, None),
        ({}, None),
        (BLOCKS, Quantization("blocks")),
        (AUTO_FP8, Quantization("tensor", static=True)),
        (compressed(), Quantization("channel", block_scales="weight_scale")),
        (compressed("tensor"), Quantization("tensor", block_scales="weight_scale")),
        (compressed("tensor", dynamic=False), Quantization("tensor", static=True, block_scales="weight_scale")),
        (compressed("channel", dynamic=False), Quantization("channel", static=True, block_scales="weight_scale")),
        (compressed("block"), Quantization("blocks", block_scales="weight_scale")),
    ],
)
def test_what_is_read(said: dict[str, Any] | None, expected: Quantization | None) -> None:
    for key in ("quantization_config", "compression_config"):
        read = read_quantization({key: said}, "config.json")
        assert read == expected or (expected and read == replace(expected, ignored=read.ignored))


def _changed(path: str, value: Any) -> dict[str, Any]:
    said = copy.deepcopy(compressed())
    *keys, last = path.split("/")
    target: Any = said
    for key in keys:
        target = target[key]
    target[last] = value
    return said


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, r"quantized \(gptq\)"),
        ({"quant_method": "awq", "bits": 4}, r"quantized \(awq\)"),
        ({"load_in_4bit": True}, r"quantized \(bitsandbytes\)"),
        ({"bits": 4}, "in no known way"),
        ("gptq", "is no object"),
        (BLOCKS | {"weight_block_size": [64, 64]}, "weight_block_size"),
        (BLOCKS | {"fmt": "e5m2"}, "fmt e5m2"),
        (BLOCKS | {"activation_scheme": "tensor"}, "activation_scheme tensor"),
        (_changed("format", "pack-quantized"), "format pack-quantized"),
        (_changed("config_groups", {}), "0 groups"),
        (_changed("config_groups", 3), "compressed-tensors"),
        (_changed("config_groups/group_0/weights/num_bits", 4), "weights that are not in 8-bit floats"),
        (_changed("config_groups/group_0/weights/type", "int"), "weights that are not in 8-bit floats"),
        (_changed("config_groups/group_0/weights/strategy", "group"), "weights by group"),
        (_changed("config_groups/group_0/input_activations", None), "activations that are not in 8-bit floats"),
        (_changed("config_groups/group_0/targets", ["re:.*mlp"]), "targets other than Linear"),
        (_changed("ignore", ["re:("]), "compressed-tensors.*unterminated subpattern"),
        (_changed("ignore", 5), "leave out that are no list of names: 5"),
        (_changed("ignore", "lm_head"), "leave out that are no list of names: lm_head"),
        (BLOCKS | {"modules_to_not_convert": ["*mlp"]}, "nothing to repeat"),
        (_changed("config_groups/group_0/weights/symmetric", False), "zero points"),
        (_changed("config_groups/group_0/output_activations", {"num_bits": 8}), "rounded outputs"),
        (_changed("sparsity_config", {"format": "sparse-24-bitmask"}), "sparse weights"),
        (_changed("transform_config", {"config_groups": {"u": {"type": "hadamard"}}}), "rotated weights"),
        (_changed("kv_cache_scheme", {"num_bits": 8}), "a KV cache with scales of its own"),
    ],
)
def test_others_are_named(said: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        read_quantization({"quantization_config": said}, "config.json")
    assert "config.json" in str(raised.value)


LAYERS = [
    f"model.layers.{layer}"
    for layer in ("1.mlp.down_proj", "11.mlp.down_proj", "1.mlp.gate_proj", "1.self_attn.q_proj", "0.mlp.up_proj")
]
ENTRIES = [
    "lm_head",
    "mlp",
    "down_proj",
    "model.layers.1",
    "model.layers.1.",
    "model.layers.1.mlp",
    "model.layers.1.mlp.gate",
    "model.layers.1.mlp.gate_proj",
    "model.layers.*",
    r"model\.layers\.\d\.mlp",
    "model.layers.0|model.layers.11",
    r"re:.*\.down_proj$",
    "q_pro",
    "",
]


def _ignored(said: dict[str, Any]) -> list[str]:
    quantization = read_quantization({"quantization_config": said}, "config.json")
    assert quantization is not None
    return [name for name in LAYERS if quantization.ignores(name)]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("said", [BLOCKS | {"modules_to_not_convert": []}, AUTO_FP8])
def test_fp8_leaves_the_layers_that_transformers_leaves(said: dict[str, Any], entry: str) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    key = "ignored_layers" if "ignored_layers" in said else "modules_to_not_convert"
    assert _ignored(said | {key: [entry]}) == [name for name in LAYERS if not should_convert_module(name, [entry])]


COMPRESSED_TENSORS: dict[str, list[str]] = {
    "lm_head": [],
    "down_proj": [],
    "model.layers.1": [],
    "model.layers.1.mlp": [],
    "model.layers.1.mlp.gate_proj": [LAYERS[2]],
    r"model.layers.1.mlp.gate.proj": [],
    r"re:.*\.down_proj$": LAYERS[:2],
    "re:model.layers.1": LAYERS[:4],
    "re:mlp": [],
    "Linear": LAYERS,
    "": [],
}
"""What its `is_match` (0.20, which the tests do not install) leaves of `LAYERS`."""


@pytest.mark.parametrize("entry", COMPRESSED_TENSORS)
def test_compressed_tensors_leaves_whole_names_patterns_and_classes(entry: str) -> None:
    assert _ignored(compressed(ignore=[entry])) == COMPRESSED_TENSORS[entry]
    assert _ignored(compressed(ignore=["lm_head", entry])) == COMPRESSED_TENSORS[entry]
