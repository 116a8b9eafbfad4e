"""What ranks that compute on the host's CPUs take of its memory, shared and their own: arithmetic, before any of it is
taken. A host that runs out kills processes. Called by `engine.executor.processes`.
"""

from __future__ import annotations

from engine.config import EngineConfig
from engine.kv.geometry import KVGeometry
from engine.kv.segment import check_memory
from engine.preflight import CPU_POOL_BYTES, num_device_blocks, num_host_blocks
from engine.weights.arena import rank_arena
from engine.weights.store import WeightStore
from engine.wording import MIB, as_size

WORKER_BYTES = 256 * MIB  # an idle worker has 50 MiB of its own (torch is shared); the rest is for a step's activations


def check_cpu_memory(config: EngineConfig, geometry: KVGeometry, weights_mode: str) -> None:
    """Raise ConfigError unless the host, and the memory limit that this process is under, have room for all ranks."""
    needs = cpu_memory_bytes(config, geometry, weights_mode)
    parts = ", ".join(f"{what} {as_size(num_bytes)}" for what, num_bytes in needs.items() if num_bytes)
    device_flag = "--num-device-blocks" if config.num_device_blocks else "--kv-cache-memory-bytes"
    host_flag = "--num-host-blocks" if config.num_host_blocks else "--host-kv-bytes"
    flags = device_flag if config.plan.is_static else f"{device_flag} or {host_flag}"
    check_memory(
        sum(needs.values()),
        f"plan {config.plan} on the CPU ({parts})",
        f"lower {flags}, choose a smaller model, or run it on GPUs",
    )


def cpu_memory_bytes(config: EngineConfig, geometry: KVGeometry, weights_mode: str) -> dict[str, int]:
    """Bytes by what takes them, of all ranks together."""
    shape, plan = geometry.shape, config.plan
    weights = 0 if plan.is_static else WeightStore.size_bytes(shape, plan)
    strides = []
    for rank in range(plan.world_size):
        if weights_mode != "resident":  # those compute out of the store
            weights += max(rank_arena(shape, plan, layout, rank).total_bytes for layout in plan.layouts)
        strides.append(geometry.device_block_bytes(rank))
    blocks = min(num_device_blocks(config, stride, CPU_POOL_BYTES) for stride in strides)
    return {
        "weights": weights,
        "device KV pools": (blocks + 1) * sum(strides),  # one is for padding
        "host KV pool": num_host_blocks(config, geometry) * geometry.host_block_bytes,
        "workers": plan.world_size * WORKER_BYTES,
    }
