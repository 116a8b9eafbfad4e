"""The real executor: one worker process for each rank, commands over ZeroMQ, memory shared through segments.

Built by the engine process (`engine.process`) and `engine.LLM`; used by `engine.core`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq

from engine.config import EngineConfig
from engine.device.choice import choose_device
from engine.errors import EngineDeadError
from engine.executor.base import Capacity, Executor
from engine.executor.cpu_memory import check_cpu_memory
from engine.executor.memory import free_device_bytes
from engine.executor.ranks import Ranks
from engine.kv.geometry import KVGeometry, check_pools
from engine.kv.segment import Segment, check_room
from engine.model.shapes import check_plan, read_shape
from engine.parallel.shared_memory import shared_bytes
from engine.preflight import max_model_len, message_bytes, num_host_blocks
from engine.steps import AllocatePools, Command, Forward, RankReady, Report, Swap, Transition
from engine.weights.choice import choose_mode
from engine.weights.loader import resolve_checkpoint
from engine.weights.store import WeightStore
from engine.wording import count
from engine.worker.worker import WorkerSpec


class ProcessExecutor(Executor):
    """Starts the workers, waits until they serve, then carries commands and reports.

    All ranks start in the plan's first layout, the prefill layout.
    """

    def __init__(self, config: EngineConfig, on_progress: Callable[[str], None] | None = None) -> None:
        """Raises ConfigError for what the operator can fix, EngineDeadError if a worker ends or gets stuck."""
        self._config = config
        self._plan = config.plan
        self._say = on_progress or (lambda line: None)
        self._outstanding: dict[int, tuple[float, set[int]]] = {}  # by command: when sent, ranks yet to report
        self._ranks = Ranks()
        try:
            self.capacity = self._start()
        except BaseException:
            self._ranks.close(grace_s=0.0)  # whoever still starts does not hear of it
            raise

    def submit(self, command: Command) -> None:
        ranks: Sequence[int]
        match command:
            case Forward() | Swap():
                ranks = self._plan.layouts[command.layout].replica_ranks(command.replica)
            case Transition():
                ranks = range(self._plan.world_size)
            case _:
                raise ValueError(f"{type(command).__name__} is the executor's own business")
        self._outstanding[command.id] = (time.monotonic(), set(ranks))
        self._ranks.send(ranks, command)

    def collect(self) -> list[Report]:
        reports = [message for message in self._ranks.receive() if isinstance(message, Report)]
        for report in reports:
            _, waiting = self._outstanding[report.id]
            waiting.discard(report.rank)
            if not waiting:
                del self._outstanding[report.id]
        self._check_deadline()
        return reports

    def wait_handle(self) -> zmq.Socket[bytes]:
        return self._ranks.socket

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._ranks.close()

    def _check_deadline(self) -> None:
        timeout_s = self._config.step_timeout_s
        for command_id, (sent, waiting) in self._outstanding.items():
            if time.monotonic() - sent > timeout_s:
                ranks = f"worker ranks {sorted(waiting)}"
                self._ranks.give_up(EngineDeadError(f"{ranks} did not finish step {command_id} within {timeout_s:g} s"))
            return  # the oldest is the first

    def _start(self) -> Capacity:
        config, plan = self._config, self._plan
        checkpoint = resolve_checkpoint(config.shape_source, config.load_format)
        shape = read_shape(checkpoint, config.dtype)
        check_plan(plan, shape)
        geometry = KVGeometry(shape, plan, config.block_size)
        context = max_model_len(config, shape)
        host_blocks = num_host_blocks(config, geometry)
        # What can be refused now should not wait for the weights.
        check_pools(geometry, context, config.num_device_blocks or None, host_blocks)
        device = choose_device(config, self._say)
        weights_mode = _weights_mode(config, geometry, context, device)

        weight_bytes = 0  # of the store; a GPU with all layouts resident needs none
        if not plan.is_static and (weights_mode == "reload" or device == "cpu"):
            weight_bytes = WeightStore.size_bytes(shape, plan)
        if device == "cpu":
            check_cpu_memory(config, geometry, weights_mode)
        segments = self._make_segments(weight_bytes, host_blocks * geometry.host_block_bytes)
        try:
            if device == "cpu" and (num_bytes := shared_bytes(plan.layouts, *message_bytes(config, shape))):
                segments["the links between ranks"] = Segment.create_sparse(num_bytes)
            specs = [
                WorkerSpec(
                    rank=rank,
                    config=config,
                    shape=shape,
                    checkpoint=checkpoint,
                    max_model_len=context,
                    num_host_blocks=host_blocks,
                    device=device,
                    weights_mode=weights_mode,
                    run_dir=self._ranks.run_dir,
                    weight_segment=segments["the weight store"],
                    kv_segment=segments["the host KV pool"],
                    links_segment=segments.get("the links between ranks"),
                    poison_kv=os.environ.get("SEESAW_POISON_KV") == "1",
                    poison_weights=os.environ.get("SEESAW_POISON_WEIGHTS") == "1",
                )
                for rank in range(plan.world_size)
            ]
            self._say(f"loading {Path(config.model).name} on {count(plan.world_size, f'{device} worker')} ({plan})")
            self._ranks.start(specs)
        finally:
            for segment in segments.values():  # the workers have their own descriptors
                if segment is not None:
                    segment.close()

        deadline = time.monotonic() + config.start_timeout_s
        num_device_blocks = min(ready.max_device_blocks for ready in self._await_all("loaded", deadline))
        check_pools(geometry, context, num_device_blocks, host_blocks)
        warming = " and warming up" if device == "cuda" else ""
        self._say(f"weights loaded; allocating {num_device_blocks} device blocks{warming}")
        self._ranks.send(range(plan.world_size), AllocatePools(num_device_blocks))
        self._await_all("serving", deadline)
        self._say(f"ready with {num_device_blocks} device and {host_blocks} host blocks of {config.block_size} tokens")
        return Capacity(
            shape=shape,
            max_model_len=context,
            num_device_blocks=num_device_blocks,
            num_host_blocks=host_blocks,
            device_block_bytes=geometry.max_device_block_bytes,
            host_block_bytes=geometry.host_block_bytes,
            device=device,
            weights=weights_mode,
        )

    def _make_segments(self, weight_bytes: int, kv_bytes: int) -> dict[str, Segment | None]:
        """The weight store and the host KV pool, those that have any bytes."""
        sizes = {"the weight store": weight_bytes, "the host KV pool": kv_bytes}
        if weight_bytes and kv_bytes:
            check_room(weight_bytes + kv_bytes, "the weight store and the host KV pool")
        segments: dict[str, Segment | None] = dict.fromkeys(sizes)
        try:
            for what, num_bytes in sizes.items():
                if num_bytes:
                    segments[what] = Segment.create(num_bytes, what)
        except BaseException:
            for segment in segments.values():
                if segment is not None:
                    segment.close()
            raise
        return segments

    def _await_all(self, stage: str, deadline: float) -> list[RankReady]:
        """Wait until every rank has reached a stage of start-up. A rank that ends meanwhile raises."""
        ready: dict[int, RankReady] = {}
        while len(ready) < self._plan.world_size:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                missing = sorted(set(range(self._plan.world_size)) - set(ready))
                raise EngineDeadError(
                    f"worker ranks {missing} were not ready within {self._config.start_timeout_s:g} s: "
                    "look at their log, or raise --start-timeout-s"
                )
            for message in self._ranks.wait(remaining_s):
                if isinstance(message, RankReady) and message.stage == stage:
                    ready[message.rank] = message
        return list(ready.values())


def _weights_mode(config: EngineConfig, geometry: KVGeometry, context: int, device: str) -> str:
    if config.plan.is_static:
        return "static"
    if config.weights != "auto":
        return config.weights
    if device == "cpu":  # the one copy in host memory serves all layouts
        return "resident"
    return choose_mode(config, geometry, context, free_device_bytes(config.plan.world_size, config.start_timeout_s))
