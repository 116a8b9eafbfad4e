"""Does it fit: what follows from the settings, the model's sizes, and what the host has, or one sentence why it cannot.

Doors call `check_early` before they start a process; executors call `fit_model`, and the real one `fit_host`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seesaw.engine.cost.profile import read_profile
from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.model.shapes import ModelShape, check_plan
from seesaw.engine.ops.capability import check_gpu
from seesaw.engine.sizing.gpus import check_gpus, choose_way
from seesaw.engine.sizing.host_memory import check_host_memory
from seesaw.engine.sizing.model import known_shape, max_model_len
from seesaw.engine.sizing.open_files import check_open_files
from seesaw.engine.sizing.pools import check_pools, num_device_blocks, num_host_blocks
from seesaw.engine.sizing.weights import WeightsWay, store_bytes
from seesaw.engine.values.config import EngineConfig


@dataclass(frozen=True)
class ModelFit:
    """What follows from the settings and a model's sizes alone. Blocks are counted for each replica's pool."""

    geometry: KVGeometry
    max_model_len: int  # tokens
    num_device_blocks: int | None  # None: what GPUs have left, once the weights are there
    num_host_blocks: int

    @property
    def host_pool_bytes(self) -> int:
        return self.num_host_blocks * self.geometry.host_block_bytes


@dataclass(frozen=True)
class HostFit:
    """What follows from what the host has."""

    weights: WeightsWay
    store_bytes: int  # of the host's copy of the weights; 0: there is none


def check_early(config: EngineConfig) -> None:
    """Raise ConfigError if too few files may be open, or if the model's sizes are known without a hub and rule the
    context, the layouts or the pools out. Executors check the sizes again with what they then know: this only spares
    the operator the wait."""
    check_open_files(config)
    shape = known_shape(config)
    if shape is not None:
        fit_model(config, shape, likely_device(config))


def likely_device(config: EngineConfig) -> str:
    """The device, before anybody has looked for GPUs: `cuda` where there may be some."""
    if config.executor == "simulated":
        return "simulated"
    return "cpu" if config.device == "cpu" else "cuda"


def fit_model(config: EngineConfig, shape: ModelShape, device: str) -> ModelFit:
    """`device` is "cpu", "cuda" or "simulated". Raises ConfigError if layouts do not divide the model, if sequences of
    the longest kind do not fit the model's context or one of the pools, or if the simulated GPUs cannot run it."""
    check_plan(config.plan, shape)
    if device == "simulated" and config.host_profile:
        _check_simulated_gpus(config, shape)
    context = max_model_len(config, shape)
    geometry = KVGeometry(shape, config.plan, config.block_size)
    device_blocks, host_blocks = num_device_blocks(config, geometry, device), num_host_blocks(config, geometry)
    check_pools(config, geometry, context, device_blocks, host_blocks)
    return ModelFit(geometry, context, device_blocks, host_blocks)


def _check_simulated_gpus(config: EngineConfig, shape: ModelShape) -> None:
    """Real GPUs are asked by the operators of each worker."""
    capability = read_profile(Path(config.host_profile)).capability
    if capability is not None and shape.dtype != "float32":
        check_gpu(capability, shape, config.attention_backend)


def fit_host(
    config: EngineConfig, fit: ModelFit, device: str, free_device_bytes: Callable[[], Sequence[int]]
) -> HostFit:
    """How a host of CPUs ("cpu") or GPUs ("cuda") gets its weights. Raises ConfigError if it has not enough memory.

    `free_device_bytes` measures what each rank's GPU, still empty, has free; it is called for GPUs only, and once.
    """
    geometry, context = fit.geometry, fit.max_model_len
    way: WeightsWay
    if device == "cuda":
        free_bytes = free_device_bytes()
        way = _way(config) or choose_way(config, geometry, context, free_bytes)
        check_gpus(config, geometry, context, way, free_bytes)
    else:
        way = _way(config) or "resident"  # which takes no more of the host's memory than a store and one arena
    check_host_memory(config, geometry, way, device)
    return HostFit(way, store_bytes(geometry, way))


def _way(config: EngineConfig) -> WeightsWay | None:
    """As the settings say, None if they leave it open."""
    if config.plan.is_static:
        return "static"
    return None if config.weights == "auto" else config.weights
