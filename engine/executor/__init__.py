"""Executors: real worker processes, or a simulated host."""

from __future__ import annotations

from collections.abc import Callable

from seesaw.engine.cost.estimate import constant
from seesaw.engine.executor.base import Executor
from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.sizing.advice import host_pool_advice
from seesaw.engine.sizing.fit import fit_model
from seesaw.engine.sizing.model import find_shape
from seesaw.engine.values.config import EngineConfig


def make_executor(
    config: EngineConfig, on_progress: Callable[[str], None] | None = None, *, instant: bool = False
) -> Executor:
    """Start the executor that the configuration asks for. Blocks until it is ready; raises ConfigError and
    EngineDeadError. `on_progress` gets lines for the operator meanwhile. `instant`: a simulated host answers at once,
    for those whose clock is not its own."""
    executor = _make_executor(config, on_progress, instant)
    has = executor.capacity
    geometry = KVGeometry(has.shape, config.plan, config.block_size)
    advice = host_pool_advice(config, geometry, has.max_model_len, has.num_device_blocks, has.num_host_blocks)
    if advice and on_progress:
        on_progress(advice)
    return executor


def check_executor(config: EngineConfig) -> None:
    """Raise what `make_executor` would raise before it starts any worker: for those who start several, one by one."""
    if config.executor == "simulated":
        fit_model(config, find_shape(config), "simulated")
        return
    from seesaw.engine.executor.processes import size_up

    size_up(config, lambda line: None)


def _make_executor(config: EngineConfig, on_progress: Callable[[str], None] | None, instant: bool) -> Executor:
    if config.executor == "simulated":
        from seesaw.engine.executor.simulated import SimulatedExecutor

        if config.simulated_step_s:
            return SimulatedExecutor(config, times=constant(config.plan, config.simulated_step_s), real_time=True)
        return SimulatedExecutor(config, instant=instant)
    from seesaw.engine.executor.processes import ProcessExecutor

    return ProcessExecutor(config, on_progress)
