"""What a family of models is: how its config reads, which weights a decoder layer has, and what the layer computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from seesaw.engine.model.config_fields import ConfigFields
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.model.spec import Cut, LinearSpec, Part, VectorSpec, WeightSpec

if TYPE_CHECKING:
    from seesaw.engine.model.layers import DenseLayer


class Family(ABC):
    """One file a family, one instance in `engine.model.families`. No state, no torch until a layer is made."""

    model_type: ClassVar[str]  # of transformers' config
    architectures: ClassVar[tuple[str, ...]]
    defaults: ClassVar[Mapping[str, Any]] = {}  # what transformers takes for keys that config.json lacks

    @abstractmethod
    def options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of ModelShape that set this family apart, from a config.json with the defaults filled in.

        Raises ConfigError, or KeyError, TypeError or ValueError for a value that cannot be.
        """

    @abstractmethod
    def layer_specs(self, shape: ModelShape) -> tuple[WeightSpec, ...]:
        """A decoder layer's weights. Sources are named as in the checkpoint, behind `model.layers.N.`."""

    @abstractmethod
    def layer(self) -> type[DenseLayer]:
        """Computes a decoder layer of these weights."""


class DenseFamily(Family):
    """Attention and a gated MLP, each behind a norm: Llama and most of what came after it."""

    def layer_specs(self, shape: ModelShape) -> tuple[WeightSpec, ...]:
        heads, kv_heads, dim, hidden = shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.hidden
        query = Part("self_attn.q_proj", heads, dim)
        key, value = (Part(f"self_attn.{name}_proj", kv_heads, dim) for name in "kv")
        gate, up = (Part(f"mlp.{name}_proj", shape.ffn) for name in ("gate", "up"))
        attended, activated = Part("self_attn.o_proj", heads, dim), Part("mlp.down_proj", shape.ffn)
        norms = (
            VectorSpec("q_norm", "self_attn.q_norm", dim),
            VectorSpec("k_norm", "self_attn.k_norm", dim),
        )
        return (
            VectorSpec("input_norm", "input_layernorm", hidden),
            LinearSpec("qkv", Cut.ROWS, (query, key, value), hidden, bias=shape.qkv_bias),
            *(norms if shape.qk_norm else ()),
            LinearSpec("o", Cut.COLUMNS, (attended,), hidden, bias=shape.o_bias),
            VectorSpec("post_norm", "post_attention_layernorm", hidden),
            LinearSpec("gate_up", Cut.ROWS, (gate, up), hidden, bias=shape.mlp_bias),
            LinearSpec("down", Cut.COLUMNS, (activated,), hidden, bias=shape.mlp_bias),
        )

    def layer(self) -> type[DenseLayer]:
        from seesaw.engine.model.layers import DenseLayer

        return DenseLayer


def read_window(config: Mapping[str, Any]) -> int | None:
    """A config's `sliding_window`: tokens that one attends to, itself included. None: all before it."""
    return None if config["sliding_window"] is None else ConfigFields(config, "config.json").count("sliding_window")
