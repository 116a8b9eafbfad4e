"""Executors: real worker processes, or a simulated host."""

from __future__ import annotations

from collections.abc import Callable

from engine.config import EngineConfig
from engine.cost.estimate import constant
from engine.executor.advice import host_pool_advice
from engine.executor.base import Executor


def make_executor(
    config: EngineConfig, on_progress: Callable[[str], None] | None = None, *, instant: bool = False
) -> Executor:
    """Start the executor that the configuration asks for. Blocks until it is ready; raises ConfigError and
    EngineDeadError. `on_progress` gets lines for the operator meanwhile. `instant`: a simulated host answers at once,
    for those whose clock is not its own."""
    executor = _make_executor(config, on_progress, instant)
    advice = host_pool_advice(config, executor.capacity)
    if advice and on_progress:
        on_progress(advice)
    return executor


def _make_executor(config: EngineConfig, on_progress: Callable[[str], None] | None, instant: bool) -> Executor:
    if config.executor == "simulated":
        from engine.executor.simulated import SimulatedExecutor

        if config.simulated_step_s:
            return SimulatedExecutor(config, times=constant(config.plan, config.simulated_step_s), real_time=True)
        return SimulatedExecutor(config, instant=instant)
    from engine.executor.processes import ProcessExecutor  # imports torch

    return ProcessExecutor(config, on_progress)
