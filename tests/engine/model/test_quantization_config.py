"""Which quantized checkpoints are read, and what is said of the others."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from engine.model.quantization import Quantization
from engine.model.quantization_config import read_quantization
from engine.values.errors import ConfigError

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
        (BLOCKS, Quantization("blocks", ("lm_head", "model.layers.0.mlp.gate"))),
        (AUTO_FP8, Quantization("tensor", ("lm_head",), static=True)),
        (compressed(), Quantization("channel", ("lm_head",), block_scales="weight_scale")),
        (compressed("tensor"), Quantization("tensor", ("lm_head",), block_scales="weight_scale")),
        (compressed("tensor", dynamic=False), Quantization("tensor", ("lm_head",), True, "weight_scale")),
        (compressed("channel", dynamic=False), Quantization("channel", ("lm_head",), True, "weight_scale")),
        (compressed("block"), Quantization("blocks", ("lm_head",), block_scales="weight_scale")),
    ],
)
def test_what_is_read(said: dict[str, Any] | None, expected: Quantization | None) -> None:
    assert read_quantization({"quantization_config": said}, "config.json") == expected
    assert read_quantization({"compression_config": said}, "config.json") == expected


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
        (_changed("ignore", 5), "compressed-tensors"),
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


def test_ignored_layers_are_names_or_patterns() -> None:
    quantization = Quantization(ignored=("lm_head", r"re:.*\.down_proj$"))
    assert quantization.ignores("model.layers.3.mlp.down_proj")
    assert not quantization.ignores("model.layers.3.mlp.up_proj")


@pytest.mark.parametrize(
    "entry", ["model.layers.1", "model.layers.1.mlp.gate", "mlp", "down_proj", "model.layers.1.mlp"]
)
@pytest.mark.parametrize("layer", ["1.mlp.down_proj", "11.mlp.down_proj", "1.mlp.gate_proj", "1.self_attn.q_proj"])
def test_ignored_layers_are_those_that_transformers_leaves(entry: str, layer: str) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    name = f"model.layers.{layer}"
    assert Quantization(ignored=(entry,)).ignores(name) is not should_convert_module(name, [entry])
