"""What can be refused at once: everything that needs no worker, no torch and no hub.

The executors check the same things with what they then know; this only spares the operator the wait.
"""

from __future__ import annotations

from pathlib import Path

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.kv.geometry import KVGeometry, check_pools
from engine.model.shapes import check_plan, read_shape


def check_early(config: EngineConfig) -> None:
    """Raise ConfigError if the model is a folder and its config.json rules the layouts or the pools out."""
    source = config.shape_source
    folder = Path(source)
    if not source or not (folder.exists() or source.startswith((".", "/", "~"))):
        return  # a hub name: nothing is known yet
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {source}: give a Llama checkpoint folder or a hub name")
    shape = read_shape(folder, config.dtype)
    check_plan(config.plan, shape)
    if config.max_model_len > shape.max_position:
        raise ConfigError(
            f"max_model_len {config.max_model_len} is longer than the model's context of {shape.max_position} tokens: "
            f"use at most {shape.max_position}"
        )
    geometry = KVGeometry(shape, config.plan, config.block_size)
    if config.num_device_blocks:
        num_host_blocks = config.num_host_blocks or config.host_kv_bytes // geometry.host_block_bytes
        check_pools(geometry, config.max_model_len or shape.max_position, config.num_device_blocks, num_host_blocks)
