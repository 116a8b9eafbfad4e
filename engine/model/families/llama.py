"""Llama 1, 2 and 3.x, and whoever calls itself one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seesaw.engine.model.families.base import DenseFamily


class Llama(DenseFamily):
    model_type = "llama"
    architectures = ("LlamaForCausalLM",)

    def options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        attention = bool(config.get("attention_bias"))
        return {"qkv_bias": attention, "o_bias": attention, "mlp_bias": bool(config.get("mlp_bias"))}
