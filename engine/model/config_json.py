"""Reading a checkpoint's config.json and generation_config.json, as transformers reads them. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.model.families import find_family
from engine.model.quantization_config import read_quantization
from engine.model.shapes import DTYPE_BYTES, ModelShape, RopeScaling
from engine.values.errors import ConfigError


def read_shape(folder: Path, dtype: str = "auto") -> ModelShape:
    """Read `config.json` of a checkpoint folder. Raises ConfigError for what Seesaw cannot run."""
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"no config.json in {folder}: give a checkpoint folder or a hub name")
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
        raise ConfigError(f"{path} holds no JSON object: give a checkpoint folder")
    return raw


def _merged_ids(*ids: Any) -> list[int]:
    lists = [value if isinstance(value, list) else [] if value is None else [value] for value in ids]
    return list(dict.fromkeys(token for tokens in lists for token in tokens))


def shape_from_config(raw: Mapping[str, Any], where: str, dtype: str = "auto") -> ModelShape:
    """The shape that a transformers config describes, in the given dtype."""
    family = find_family(raw, where)
    config = {**family.defaults, **raw}
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{where} has hidden_act {config['hidden_act']!r}: only silu is supported")
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        eos = config.get("eos_token_id")
        eos_ids = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
        chosen = dtype if dtype != "auto" else str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
        theta, rope = _rope(config, where)
        shape = ModelShape(
            num_layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            ffn=int(config["intermediate_size"]),
            vocab=int(config["vocab_size"]),
            max_position=int(config.get("max_position_embeddings", 2048)),
            tied=bool(config.get("tie_word_embeddings", False)),
            dtype=chosen.removeprefix("torch."),
            rms_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope=rope,
            eos_token_ids=tuple(int(token) for token in eos_ids),
            family=family.model_type,
            quantization=read_quantization(raw, where),
            **family.options(config),
        )
    except KeyError as error:
        raise ConfigError(f"{where} lacks the key {error}") from None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(f"{where} has a value that cannot be: {error}") from None
    if shape.dtype not in DTYPE_BYTES:
        raise ConfigError(f"dtype {shape.dtype!r} is not supported: choose one of {', '.join(DTYPE_BYTES)}")
    return shape


def _rope(raw: Mapping[str, Any], where: str) -> tuple[float, RopeScaling]:
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
