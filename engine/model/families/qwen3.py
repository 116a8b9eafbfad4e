"""Qwen3, dense: no biases, and a norm on each head's query and key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seesaw.engine.model.families.base import DenseFamily
from seesaw.engine.model.families.qwen2 import WINDOW_DEFAULTS, window_of


class Qwen3(DenseFamily):
    model_type = "qwen3"
    architectures = ("Qwen3ForCausalLM",)
    defaults = {"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768, **WINDOW_DEFAULTS}

    def options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        bias = bool(config.get("attention_bias"))
        return {"qkv_bias": bias, "o_bias": bias, "qk_norm": True, "sliding_window": window_of(config)}
