"""`weights: auto` on GPUs: whether each holds its weights of all layouts at once, or reloads them from the host.

Decided by the executor before the workers start, since only `reload` needs the host's copy. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from engine.config import EngineConfig
from engine.kv.geometry import KVGeometry, needed_blocks
from engine.weights.arena import rank_arena
from engine.wording import GIB

# What neither weights nor KV may take: CUDA graphs, and the largest step, which is measured when the weights are there.
WORKSPACE_BYTES = 4 * GIB


def choose_mode(
    config: EngineConfig, geometry: KVGeometry, max_model_len: int, free_bytes: Sequence[int]
) -> Literal["resident", "reload"]:
    """`resident` if on every rank all layouts' weights leave enough of its `free_bytes` (of a GPU still empty) for KV.

    Enough is the pool that the configuration asks for. If it asks for none, enough is at least half of what
    `reload` would leave, and room for the longest sequences that have to fit.
    """
    plan = geometry.plan
    for rank, free in enumerate(free_bytes):
        arenas = [rank_arena(geometry.shape, plan, layout, rank).total_bytes for layout in plan.layouts]
        stride = geometry.device_block_bytes(rank)
        room = free - WORKSPACE_BYTES
        enough = config.num_device_blocks * stride or config.kv_cache_memory_bytes
        if not enough:
            enough = max((room - max(arenas)) // 2, needed_blocks(geometry, max_model_len) * stride)
        if room - sum(arenas) < enough:
            return "reload"
    return "resident"
