"""Reading a checkpoint's config.json and generation_config.json, as transformers reads them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seesaw.engine.model.checkpoint_files import StoredTensor, same_numbers, stored_tensors
from seesaw.engine.model.config_fields import ConfigFields
from seesaw.engine.model.families import find_family
from seesaw.engine.model.quantization_config import read_quantization
from seesaw.engine.model.rope_config import read_rope
from seesaw.engine.model.shapes import DTYPE_BYTES, ModelShape
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.json_file import read_object

_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")  # families take them for granted
_MODALITIES = ("text", "vision", "audio", "thinker", "talker", "llm")
_MOST_LAYERS = 10_000  # each is some objects
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' names


def read_shape(folder: Path, dtype: str = "auto", tensors: Mapping[str, StoredTensor] | None = None) -> ModelShape:
    """Read `config.json` of a checkpoint folder. `tensors` are those of its files, if they are known.

    Raises ConfigError for what Seesaw cannot run.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"no config.json in {folder}: give a checkpoint folder or a hub name")
    raw = read_object(path, "download the checkpoint again")
    generation = folder / "generation_config.json"
    if generation.exists():
        # Chat models name here the end-of-turn token that config.json leaves out.
        also = read_object(generation, "mend it, or remove it").get("eos_token_id")
        raw["eos_token_id"] = _merged_ids(raw.get("eos_token_id"), also)
    if tensors is None:
        tensors = _tensors_of(folder)
    return shape_from_config(raw | _what_files_say(raw, tensors), str(path), dtype)


def _merged_ids(*ids: Any) -> list[Any]:
    lists = [value if isinstance(value, list) else [] if value is None else [value] for value in ids]
    merged: list[Any] = []
    for value in (value for values in lists for value in values):
        if value not in merged:
            merged.append(value)
    return merged


def _tensors_of(folder: Path) -> Mapping[str, StoredTensor]:
    """Nothing, unless the weights' files are there and sound.

    Whether they must be is the loader's question: sizes are read before weights are fetched, or without any.
    """
    try:
        return stored_tensors(folder)
    except ConfigError:
        return {}


def _what_files_say(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """What transformers takes from the weights' files instead of config.json."""
    says: dict[str, Any] = {}
    if not _dtype(config):
        floats = (_DTYPES[each.dtype] for each in tensors.values() if each.dtype in _DTYPES)
        says["dtype"] = next(floats, None)
    embedding, head = (tensors.get(name) for name in ("model.embed_tokens.weight", "lm_head.weight"))
    if config.get("tie_word_embeddings") is True and embedding and head and not same_numbers(embedding, head):
        says["tie_word_embeddings"] = False
    return says


def shape_from_config(raw: Mapping[str, Any], where: str, dtype: str = "auto") -> ModelShape:
    """The shape that a transformers config describes, in the given dtype. Raises ConfigError."""
    _check_kind(raw, where)
    family = find_family(raw, where)
    config = {**family.defaults, **raw}
    fields = ConfigFields(config, where)
    for key in _FLAGS:
        fields.flag(key)
    heads, hidden = fields.count("num_attention_heads"), fields.count("hidden_size")
    kv_heads = fields.count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if config.get("head_dim") is None and hidden % heads:
        raise fields.wrong("hidden_size", f"a multiple of num_attention_heads ({heads}) where there is no head_dim")
    head_dim = fields.count("head_dim", hidden // heads)
    if head_dim % 2:
        raise ConfigError(
            f"{where} has heads of {head_dim} dimensions, which cannot be rotated in pairs: use even ones"
        )
    layers = fields.count("num_hidden_layers", most=_MOST_LAYERS)
    theta, rope, context = read_rope(config, where, default_context=2048)
    try:
        options = family.options(config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where} has a value that cannot be: {error}") from None
    shape = ModelShape(
        num_layers=layers,
        hidden=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=fields.count("intermediate_size"),
        vocab=fields.count("vocab_size"),
        max_position=context,
        tied=fields.flag("tie_word_embeddings"),
        dtype=dtype if dtype != "auto" else _dtype(config) or "bfloat16",
        rms_eps=fields.number("rms_norm_eps", 1e-6, above=0),
        rope_theta=theta,
        rope=rope,
        eos_token_ids=fields.token_ids("eos_token_id"),
        family=family.model_type,
        quantization=read_quantization(raw, where),
        **options,
    )
    if shape.dtype not in DTYPE_BYTES:
        raise ConfigError(f"dtype {shape.dtype!r} is not supported: choose one of {', '.join(DTYPE_BYTES)}")
    return shape


def _check_kind(config: Mapping[str, Any], where: str) -> None:
    nested = [key for key, value in config.items() if key.endswith("_config") and isinstance(value, dict)]
    nested = [key for key in nested if key.removesuffix("_config") in _MODALITIES]
    if nested:
        raise ConfigError(
            f"{where} is a multimodal model's ({', '.join(nested)}), which is not supported: use a model of text alone"
        )
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ConfigError(f"{where} has hidden_act {config['hidden_act']!r}: only silu is supported")
    if config.get("transformers_weights") is not None:
        raise ConfigError(
            f"{where} names a file of weights (transformers_weights): remove it, and name the file as usual"
        )


def _dtype(config: Mapping[str, Any]) -> str:
    """As transformers 5 writes it, else as 4 did; empty if neither."""
    return str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
