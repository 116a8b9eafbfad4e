"""How many blocks the two KV pools have, and how many they must have."""

from __future__ import annotations

from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.wording import GIB, as_size, at_least

# The KV pool of a rank, in bytes, where none is asked for. That of a GPU is what is free (`engine.sizing.gpus`).
DEFAULT_POOL_BYTES = {"cpu": GIB, "simulated": 4 * GIB}


def needed_blocks(geometry: KVGeometry, max_model_len: int) -> int:
    """The least blocks of a device pool: for one longest sequence. Whoever is in its way leaves for the host."""
    return geometry.blocks_for(max_model_len)


def num_device_blocks(config: EngineConfig, geometry: KVGeometry, device: str) -> int | None:
    """Blocks of every device pool, as asked for or as usual on a `device` ("cpu", "cuda" or "simulated"). None on GPUs
    where nothing is asked for: as many as the fullest of them has room for, which shows when its weights are there."""
    if config.num_device_blocks:
        return config.num_device_blocks
    pool_bytes = config.kv_cache_memory_bytes or DEFAULT_POOL_BYTES.get(device)
    return None if pool_bytes is None else pool_bytes // geometry.max_device_block_bytes


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


def device_option(config: EngineConfig) -> str:
    """The flag that sets the device pools' size, as far as anything was given."""
    return "--num-device-blocks" if config.num_device_blocks else "--kv-cache-memory-bytes"


def host_option(config: EngineConfig) -> str:
    """The flag that sets the host pool's size."""
    return "--num-host-blocks" if config.num_host_blocks else "--host-kv-bytes"


def check_pools(
    config: EngineConfig, geometry: KVGeometry, max_model_len: int, device_blocks: int | None, host_blocks: int
) -> None:
    """Raise ConfigError unless sequences of `max_model_len` tokens fit every pool they may have to use.

    The device pools are passed over while their size is not known (None).
    """
    needed = needed_blocks(geometry, max_model_len)
    if device_blocks is not None and device_blocks < needed:
        size = str(needed) if config.num_device_blocks else at_least(needed * geometry.max_device_block_bytes)
        raise ConfigError(
            f"the device KV pool has {device_blocks} blocks of {geometry.block_size} tokens but max_model_len "
            f"{max_model_len} needs {needed}: {shorter(geometry, device_blocks)}raise {device_option(config)} to at "
            f"least {size}"
        )
    one = geometry.blocks_for(max_model_len)
    if not geometry.plan.is_static and host_blocks < one:
        size = str(one) if config.num_host_blocks else at_least(one * geometry.host_block_bytes)
        raise ConfigError(
            f"the host KV pool has {host_blocks} blocks of {geometry.block_size} tokens but max_model_len "
            f"{max_model_len} needs {one}: lower --max-model-len to at most {host_blocks * geometry.block_size} or "
            f"raise {host_option(config)} to at least {size}"
        )


def shorter(geometry: KVGeometry, device_blocks: int) -> str:
    """The first thing to change for a device pool of so many blocks, up to the word for the next; empty if a context
    that fits would be no context."""
    most = device_blocks * geometry.block_size
    return f"lower --max-model-len to at most {most} or " if most > 1 else ""
