"""The numbers of a Llama, without torch: what layouts are checked against and memory is counted from."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.parallel.layout import Layout, Plan
from engine.values.errors import ConfigError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class RopeScaling:
    """Rope of Llama 1-3.x. kind: `default`, `linear` (position / factor) or `llama3` (by wavelength)."""

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Llama-family decoder. `ffn` is the width of gate and of up, each."""

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

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def layer_params(self) -> int:
        """Weights of a decoder layer's matrix products."""
        heads = 2 * self.num_heads + 2 * self.num_kv_heads  # q and o, k and v
        return self.hidden * (heads * self.head_dim + 3 * self.ffn)

    @property
    def head_params(self) -> int:
        return self.hidden * self.vocab

    def padded_vocab(self, slices: int) -> int:
        """The vocabulary rounded up so that `slices` divides it."""
        return math.ceil(self.vocab / slices) * slices

    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V of one token over all layers and KV heads."""
        return self.num_layers * self.num_kv_heads * 2 * self.head_dim * self.dtype_bytes


def read_shape(folder: Path, dtype: str = "auto") -> ModelShape:
    """Read `config.json` of a checkpoint folder. Raises ConfigError for what Seesaw cannot run."""
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"no config.json in {folder}: give a Llama checkpoint folder or a hub name")
    raw = _read_object(path)
    generation = folder / "generation_config.json"
    if generation.exists():
        # Chat models name here the end-of-turn token that config.json leaves out.
        also = _read_object(generation).get("eos_token_id")
        raw["eos_token_id"] = _merged_ids(raw.get("eos_token_id"), also)
    return shape_from_config(raw, str(path), dtype)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested without end
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no JSON object: give a Llama checkpoint folder")
    return raw


def _merged_ids(*ids: Any) -> list[int]:
    lists = [value if isinstance(value, list) else [] if value is None else [value] for value in ids]
    return list(dict.fromkeys(token for tokens in lists for token in tokens))


def shape_from_config(raw: dict[str, Any], where: str, dtype: str = "auto") -> ModelShape:
    """The shape that a transformers config describes, in the given dtype."""
    if raw.get("model_type") != "llama":
        raise ConfigError(f"{where} has model_type {raw.get('model_type')!r}: only llama checkpoints are supported")
    if raw.get("attention_bias") or raw.get("mlp_bias"):
        raise ConfigError(f"{where} asks for attention or mlp biases, which are not supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{where} has hidden_act {raw['hidden_act']!r}: only silu is supported")
    try:
        heads = int(raw["num_attention_heads"])
        hidden = int(raw["hidden_size"])
        eos = raw.get("eos_token_id")
        eos_ids = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
        chosen = dtype if dtype != "auto" else str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16")
        theta, rope = _rope(raw, where)
        shape = ModelShape(
            num_layers=int(raw["num_hidden_layers"]),
            hidden=hidden,
            num_heads=heads,
            num_kv_heads=int(raw.get("num_key_value_heads") or heads),
            head_dim=int(raw.get("head_dim") or hidden // heads),
            ffn=int(raw["intermediate_size"]),
            vocab=int(raw["vocab_size"]),
            max_position=int(raw.get("max_position_embeddings", 2048)),
            tied=bool(raw.get("tie_word_embeddings", False)),
            dtype=chosen.removeprefix("torch."),
            rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope=rope,
            eos_token_ids=tuple(int(token) for token in eos_ids),
        )
    except KeyError as error:
        raise ConfigError(f"{where} lacks the key {error}") from None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(f"{where} has a value that cannot be: {error}") from None
    if shape.dtype not in DTYPE_BYTES:
        raise ConfigError(f"dtype {shape.dtype!r} is not supported: choose one of {', '.join(DTYPE_BYTES)}")
    return shape


def _rope(raw: dict[str, Any], where: str) -> tuple[float, RopeScaling]:
    # transformers 5 writes one `rope_parameters`, 4 wrote `rope_theta` beside `rope_scaling`.
    scaling: dict[str, Any] = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(scaling.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return theta, RopeScaling()
    if kind == "linear":
        return theta, RopeScaling("linear", factor=float(scaling["factor"]))
    if kind == "llama3":
        return theta, RopeScaling(
            "llama3",
            factor=float(scaling["factor"]),
            low_freq_factor=float(scaling["low_freq_factor"]),
            high_freq_factor=float(scaling["high_freq_factor"]),
            original_max_position=int(scaling["original_max_position_embeddings"]),
        )
    raise ConfigError(f"{where} asks for rope scaling {kind!r}: only default, linear and llama3 are supported")


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
