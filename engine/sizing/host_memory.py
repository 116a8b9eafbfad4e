"""What a plan takes of the host's memory, shared and the ranks' own: arithmetic, before any of it is taken. A host that
runs out kills processes. What there is, `engine.kv.room` measures.
"""

from __future__ import annotations

from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.kv.room import check_memory, check_room
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.sizing.pools import device_option, host_option, num_device_blocks, num_host_blocks
from seesaw.engine.sizing.weights import WeightsWay, device_weight_bytes, store_bytes
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.wording import MIB, as_size

TOKEN_BYTES = 8  # int64
LOGIT_BYTES = 4  # float32
WORKER_BYTES = 256 * MIB  # an idle worker has 50 MiB of its own (torch is shared); the rest is for a step's activations


def check_host_memory(config: EngineConfig, geometry: KVGeometry, way: WeightsWay, device: str) -> None:
    """Raise ConfigError unless the host, and the memory limit that this process is under, have room for the shared
    memory, and on CPUs for all that the ranks take."""
    if device == "cpu":
        _check_cpu_memory(config, geometry, way)
    sizes = {
        "the weight store": store_bytes(geometry, way),
        "the host KV pool": num_host_blocks(config, geometry) * geometry.host_block_bytes,
    }
    shared = [what for what, num_bytes in sizes.items() if num_bytes]
    if shared:
        check_room(sum(sizes.values()), " and ".join(shared))


def _check_cpu_memory(config: EngineConfig, geometry: KVGeometry, way: WeightsWay) -> None:
    needs = cpu_memory_bytes(config, geometry, way)
    parts = ", ".join(f"{what} {as_size(num_bytes)}" for what, num_bytes in needs.items() if num_bytes)
    flags = device_option(config) if config.plan.is_static else f"{device_option(config)} or {host_option(config)}"
    if _logits_bytes(config, geometry.shape) > WORKER_BYTES:
        flags = f"--max-num-seqs, {flags}"
    check_memory(
        sum(needs.values()),
        f"plan {config.plan} on the CPU ({parts})",
        f"lower {flags}, choose a smaller model, or run it on GPUs",
    )


def message_bytes(config: EngineConfig, shape: ModelShape) -> tuple[int, int]:
    """Of the largest step: its hidden states, and the tokens that it samples."""
    return config.max_num_batched_tokens * shape.hidden * shape.dtype_bytes, config.max_num_seqs * TOKEN_BYTES


def _logits_bytes(config: EngineConfig, shape: ModelShape) -> int:
    """Of the largest step of a replica: nothing but the vocabulary bounds what they take."""
    return config.max_num_seqs * shape.vocab * LOGIT_BYTES


def cpu_memory_bytes(config: EngineConfig, geometry: KVGeometry, way: WeightsWay) -> dict[str, int]:
    """Bytes by what takes them, of all ranks together, where they compute on the host's CPUs."""
    ranks, blocks = range(config.plan.world_size), num_device_blocks(config, geometry, "cpu")
    assert blocks is not None
    return {
        "weights": store_bytes(geometry, way) + sum(device_weight_bytes(geometry, way)),
        "device KV pools": sum(geometry.device_pool_bytes(rank, blocks) for rank in ranks),
        "host KV pool": num_host_blocks(config, geometry) * geometry.host_block_bytes,
        "workers": len(ranks) * WORKER_BYTES + config.plan.decode.dp * _logits_bytes(config, geometry.shape),
    }
