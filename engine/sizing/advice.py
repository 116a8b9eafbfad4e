"""What an operator should hear of pools that are allowed, and yet too small to gain much."""

from __future__ import annotations

from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.sizing.pools import host_option
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.wording import at_least


def host_pool_advice(
    config: EngineConfig, geometry: KVGeometry, max_model_len: int, num_device_blocks: int, num_host_blocks: int
) -> str | None:
    """One line if the prompts of a prefill phase, which wait in the host pool, cannot fill half of the device pools in
    which they then decode; None if they can, or if half of `max_num_seqs` sequences of the longest kind fit."""
    plan = config.plan
    if plan.prefill == plan.decode:
        return None
    replicas = plan.decode.dp
    device_blocks = replicas * num_device_blocks
    useful = min(device_blocks, replicas * config.max_num_seqs * geometry.blocks_for(max_model_len))
    if 2 * num_host_blocks >= useful:
        return None
    size = str(useful) if config.num_host_blocks else at_least(useful * geometry.host_block_bytes)
    return (
        f"the host KV pool holds {num_host_blocks * config.block_size} tokens and the device pools together "
        f"{device_blocks * config.block_size}: prefill phases will be short and transitions many; "
        f"raise {host_option(config)} to {size}"
    )
