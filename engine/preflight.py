"""What follows from the settings and a model's sizes, and what can be refused at once: without workers, torch or hub.

The executors check again with what they then know; `check_early` only spares the operator the wait.
"""

from __future__ import annotations

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.hub import local_folder
from engine.kv.geometry import KVGeometry, check_pools
from engine.model.shapes import ModelShape, check_plan, read_shape
from engine.wording import GIB, as_size, at_least

TOKEN_BYTES = 8  # int64
CPU_POOL_BYTES = GIB  # the KV pool of a rank on the CPU, where none is asked for


def check_early(config: EngineConfig) -> None:
    """Raise ConfigError if the model is a folder and its config.json rules the layouts or the pools out."""
    shape = known_shape(config)
    if shape is None:
        return
    check_plan(config.plan, shape)
    context = max_model_len(config, shape)
    geometry = KVGeometry(shape, config.plan, config.block_size)
    check_pools(geometry, context, config.num_device_blocks or None, num_host_blocks(config, geometry))


def known_shape(config: EngineConfig) -> ModelShape | None:
    """The model's sizes if it is a folder; None for a hub name. Raises ConfigError if that folder does not do."""
    folder = local_folder(config.shape_source) if config.shape_source else None
    return read_shape(folder, config.dtype) if folder else None


def max_model_len(config: EngineConfig, shape: ModelShape) -> int:
    """Longest prompt plus output in tokens. Raises ConfigError if more is asked for than the model can."""
    if config.max_model_len > shape.max_position:
        raise ConfigError(
            f"max_model_len {config.max_model_len} is longer than the model's context of {shape.max_position} tokens: "
            f"use at most {shape.max_position}"
        )
    return config.max_model_len or shape.max_position


def num_device_blocks(config: EngineConfig, block_bytes: int, default_bytes: int) -> int:
    """Blocks of a device pool: as many as are asked for, else what fits `default_bytes`."""
    return config.num_device_blocks or (config.kv_cache_memory_bytes or default_bytes) // block_bytes


def num_host_blocks(config: EngineConfig, geometry: KVGeometry) -> int:
    """Blocks of the host pool, none for a static plan. Raises ConfigError if it would have none otherwise."""
    if config.plan.is_static:
        return 0
    blocks = config.num_host_blocks or config.host_kv_bytes // geometry.host_block_bytes
    if blocks == 0:
        raise ConfigError(
            f"host_kv_bytes {as_size(config.host_kv_bytes)} does not hold one KV block: "
            f"raise --host-kv-bytes to at least {at_least(geometry.host_block_bytes)}"
        )
    return blocks


def message_bytes(config: EngineConfig, shape: ModelShape) -> tuple[int, int]:
    """Of the largest step: its hidden states, and the tokens that it samples."""
    return config.max_num_batched_tokens * shape.hidden * shape.dtype_bytes, config.max_num_seqs * TOKEN_BYTES
