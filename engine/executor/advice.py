"""What an operator should hear of pools that are allowed, and yet too small to gain much. Called by `make_executor`."""

from __future__ import annotations

from engine.config import EngineConfig
from engine.executor.base import Capacity
from engine.wording import at_least


def host_pool_advice(config: EngineConfig, capacity: Capacity) -> str | None:
    """One line if the prompts of a prefill phase, which wait in the host pool, cannot fill half of the device pools in
    which they then decode; None if they can, or if half of `max_num_seqs` sequences of the longest kind fit."""
    plan = config.plan
    if plan.prefill == plan.decode:
        return None
    replicas = plan.decode.dp
    device_blocks = replicas * capacity.num_device_blocks
    longest = -(-capacity.max_model_len // config.block_size)
    useful = min(device_blocks, replicas * config.max_num_seqs * longest)
    if 2 * capacity.num_host_blocks >= useful:
        return None
    if config.num_host_blocks:
        option = f"--num-host-blocks to {useful}"
    else:
        option = f"--host-kv-bytes to {at_least(useful * capacity.host_block_bytes)}"
    return (
        f"the host KV pool holds {capacity.num_host_blocks * config.block_size} tokens and the device pools together "
        f"{device_blocks * config.block_size}: prefill phases will be short and transitions many; raise {option}"
    )
