"""The numbers of a model, without torch: what layouts are checked against and memory is counted from.

`engine.model.config_json` reads them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from seesaw.engine.model.quantization import Quantization
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.values.errors import ConfigError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # that a model may compute in
NO_WINDOW = 2**31 - 1  # positions: more than any context has
FP8_SPEEDUP = 2  # of products in 8 bits over those in 16


@dataclass(frozen=True)
class RopeScaling:
    """Rotary positions. kind: `default`, `linear` (position / factor), `llama3` or `yarn` (by wavelength)."""

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3's: turns in the original context, below and above
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    beta_fast: float = 32.0  # yarn's: turns in the original context, above and below
    beta_slow: float = 1.0
    truncate: bool = True  # yarn's bounds are whole pairs of dimensions
    attention_factor: float = 1.0  # of cosines and sines


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a dense decoder, and what sets its family's layers apart. `ffn` is the width of gate and of up, each."""

    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_position: int
    tied: bool
    dtype: str
    rms_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope: RopeScaling = RopeScaling()
    eos_token_ids: tuple[int, ...] = ()
    family: str = "llama"  # the model_type of one of `engine.model.families`
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # each head's query and key are normed before they are rotated
    sliding_window: int | None = None  # a token attends to so many, itself included
    quantization: Quantization | None = None
    kv_cache_dtype: str | None = None  # None: the model's

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def kv_dtype(self) -> str:
        """Of K and V in both pools."""
        return self.kv_cache_dtype or self.dtype

    @property
    def kv_dtype_bytes(self) -> int:
        return 1 if self.kv_cache_dtype else self.dtype_bytes

    @property
    def attention_span(self) -> int:
        """Positions that a token attends to at most, its own included."""
        return self.sliding_window or NO_WINDOW

    @property
    def dtypes(self) -> str:
        """What the numbers are, for people."""
        weights = " with fp8 weights" if self.quantization else ""
        kv = (" and fp8 KV" if weights else " with fp8 KV") if self.kv_cache_dtype else ""
        return f"{self.dtype}{weights}{kv}"

    @property
    def linear_dtype_bytes(self) -> int:
        """Of the weights of decoder layers' products, without scales."""
        return 1 if self.quantization else self.dtype_bytes

    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V of one token over all layers and KV heads."""
        return self.num_layers * self.num_kv_heads * 2 * self.head_dim * self.kv_dtype_bytes


def check_layout(layout: Layout, shape: ModelShape) -> None:
    """Raise ConfigError, saying what to change, if the layout does not divide the model."""
    tp, pp = layout.tp, layout.pp
    if pp > shape.num_layers:
        raise ConfigError(
            f"layout {layout} has {pp} stages but the model has {shape.num_layers} layers: "
            f"use P{shape.num_layers} or less"
        )
    for what, size in (("attention heads", shape.num_heads), ("ffn columns", shape.ffn)):
        if size % tp:
            raise ConfigError(
                f"layout {layout} splits {size} {what} in {tp}, which does not divide them: "
                f"choose a T degree that divides {size}"
            )
    if shape.num_kv_heads % tp and tp % shape.num_kv_heads:
        raise ConfigError(
            f"layout {layout} splits {shape.num_kv_heads} KV heads in {tp}: "
            "choose a T degree that divides the KV heads or is a multiple of them"
        )


def check_plan(plan: Plan, shape: ModelShape) -> None:
    """Check every layout of the plan, and that one slicing serves them all."""
    for layout in plan.layouts:
        check_layout(layout, shape)
    slices = num_slices(plan)
    if shape.num_heads % slices or shape.ffn % slices:
        raise ConfigError(
            f"plan {plan} needs {slices} weight slices (the least common multiple of its T degrees), which do not "
            f"divide {shape.num_heads} heads and {shape.ffn} ffn columns: choose T degrees that divide one another"
        )


def num_slices(plan: Plan) -> int:
    """S: weights are cut into so many slices; each layout's shards own S / tp consecutive ones."""
    return math.lcm(*(layout.tp for layout in plan.layouts))
