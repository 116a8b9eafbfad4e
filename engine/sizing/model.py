"""The model's sizes, and the context that it is served with. The same for real and for simulated executors."""

from __future__ import annotations

from dataclasses import replace

from seesaw.engine.hub import local_folder
from seesaw.engine.model.config_json import read_shape
from seesaw.engine.model.quantization import FP8, Quantization
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.weights.checkpoint import Checkpoint, resolve_checkpoint

# What `--executor simulated` is without a checkpoint: small, and divisible by every usual degree.
DEFAULT_SHAPE = ModelShape(
    num_layers=32,
    hidden=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    ffn=14336,
    vocab=49152,
    max_position=8192,
    tied=False,
    dtype="bfloat16",
)


def known_shape(config: EngineConfig) -> ModelShape | None:
    """The model's sizes if no hub is needed to know them, else None. Raises ConfigError if its folder does not do."""
    source = config.shape_source
    if not source:
        return as_asked(DEFAULT_SHAPE, config) if config.executor == "simulated" else None
    folder = local_folder(source)
    return as_asked(read_shape(folder, config.dtype), config) if folder else None


def find_shape(config: EngineConfig) -> ModelShape:
    """The model's sizes. Of a hub name, only small files are fetched. Raises ConfigError if there is no such model."""
    shape = known_shape(config)
    if shape is not None:
        return shape
    return shape_of(resolve_checkpoint(config.shape_source, "dummy"), config)


def shape_of(checkpoint: Checkpoint, config: EngineConfig) -> ModelShape:
    """The sizes of a model that was found. Raises ConfigError if its config.json does not do."""
    return as_asked(read_shape(checkpoint.folder, config.dtype, checkpoint.tensors), config)


def as_asked(shape: ModelShape, config: EngineConfig) -> ModelShape:
    """The shape with its numbers kept as the settings ask for."""
    if config.dtype != "auto":
        shape = replace(shape, dtype=config.dtype)
    if config.quantization == "fp8" and shape.quantization is None:
        shape = replace(shape, quantization=Quantization())
    return replace(shape, kv_cache_dtype=FP8) if config.kv_cache_dtype == "fp8" else shape


def max_model_len(config: EngineConfig, shape: ModelShape) -> int:
    """Longest prompt plus output in tokens. Raises ConfigError if more is asked for than the model can."""
    if config.max_model_len > shape.max_position:
        raise ConfigError(
            f"max_model_len {config.max_model_len} is longer than the model's context of {shape.max_position} tokens: "
            f"use at most {shape.max_position}"
        )
    return config.max_model_len or shape.max_position
