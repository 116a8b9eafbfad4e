"""Mistral: a Llama whose first version attends to a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seesaw.engine.model.families.base import DenseFamily, read_window


class Mistral(DenseFamily):
    model_type = "mistral"
    architectures = ("MistralForCausalLM",)
    defaults = {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072}

    def options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"sliding_window": read_window(config)}
