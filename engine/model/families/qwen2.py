"""Qwen2 and Qwen2.5: a Llama with biases on query, key and value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.model.families.base import DenseFamily, read_window
from engine.values.errors import ConfigError

WINDOW_DEFAULTS = {"sliding_window": 4096, "max_window_layers": 28}


class Qwen2(DenseFamily):
    model_type = "qwen2"
    architectures = ("Qwen2ForCausalLM",)
    defaults = {"num_key_value_heads": 32, "max_position_embeddings": 32768, **WINDOW_DEFAULTS}

    def options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"qkv_bias": True, "sliding_window": window_of(config)}


def window_of(config: Mapping[str, Any]) -> int | None:
    """The sliding window of a Qwen: of all layers, or of none."""
    window = read_window(config) if config.get("use_sliding_window") else None
    if window is None:
        return None
    layers, full = int(config["num_hidden_layers"]), int(config["max_window_layers"])
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = ["full_attention"] * min(full, layers) + ["sliding_attention"] * (layers - full)
    if len(set(kinds)) > 1:
        raise ConfigError(
            f"config.json gives a sliding window to {kinds.count('sliding_attention')} of {layers} layers, which is "
            "not supported: set use_sliding_window to false there, and keep --max-model-len within the window"
        )
    return window if kinds[0] == "sliding_attention" else None
