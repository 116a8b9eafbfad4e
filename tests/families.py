"""A tiny model of every family, in each of its variants: options of `tests.tiny.write_tiny_checkpoint`."""

from __future__ import annotations

from typing import Any

WINDOW = 8  # far shorter than the tests' prompts
MODELS: dict[str, dict[str, Any]] = {
    "llama_with_biases": {"family": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"family": "mistral", "sliding_window": None},
    "mistral_in_a_window": {"family": "mistral", "sliding_window": WINDOW},
    "qwen2": {"family": "qwen2", "tied": True},
    "qwen2_in_a_window": {
        "family": "qwen2",
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 0,
    },
    "qwen3": {"family": "qwen3", "head_dim": 16},
    "qwen3_with_biases": {"family": "qwen3", "attention_bias": True},
}
