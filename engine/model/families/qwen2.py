"""Qwen2 and Qwen2.5: a Llama with biases on query, key and value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seesaw.engine.model.config_fields import ConfigFields
from seesaw.engine.model.families.base import DenseFamily, read_window
from seesaw.engine.values.errors import ConfigError

WINDOW_DEFAULTS = {"sliding_window": 4096, "max_window_layers": 28}
_FULL, _SLIDING = "full_attention", "sliding_attention"  # of `layer_types`


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
    fields = ConfigFields(config, "config.json")
    layers = fields.count("num_hidden_layers")
    full = int(min(max(fields.number("max_window_layers"), 0), layers))
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = [_FULL] * full + [_SLIDING] * (layers - full)
    elif not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (_FULL, _SLIDING) for kind in kinds):
        raise fields.wrong("layer_types", f"{_FULL} or {_SLIDING} for each of {layers} layers")
    if len(set(kinds)) > 1:
        raise ConfigError(
            f"config.json gives a sliding window to {kinds.count(_SLIDING)} of {layers} layers, which is "
            "not supported: set use_sliding_window to false there, and keep --max-model-len within the window"
        )
    return window if kinds[0] == _SLIDING else None
