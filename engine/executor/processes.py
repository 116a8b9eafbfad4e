"""The real executor: one worker process for each rank, commands over ZeroMQ, memory shared through segments.

Built by the engine process (`engine.process`) and `seesaw.LLM`; used by `engine.core`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import zmq

from seesaw.engine.awake import AwakeClock, waits
from seesaw.engine.cost.rank_times import merge
from seesaw.engine.device.choice import choose_device
from seesaw.engine.executor.base import Capacity, Executor
from seesaw.engine.executor.gpus import found_gpus, free_device_bytes
from seesaw.engine.executor.ranks import Ranks
from seesaw.engine.executor.speed import speed_lines
from seesaw.engine.kv.segment import Segment
from seesaw.engine.parallel.shared_sizes import shared_bytes
from seesaw.engine.sizing.fit import HostFit, ModelFit, fit_host, fit_model, likely_device
from seesaw.engine.sizing.host_memory import message_bytes
from seesaw.engine.sizing.model import find_shape, shape_of
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import EngineDeadError
from seesaw.engine.values.wording import count
from seesaw.engine.weights.checkpoint import resolve_checkpoint
from seesaw.engine.wire.commands import AllocatePools, Command, Forward, Masks, RankReady, Report, Swap, Transition
from seesaw.engine.worker.spec import WorkerSpec


class ProcessExecutor(Executor):
    """Starts the workers, waits until they serve, then carries commands and reports.

    All ranks start in `Plan.first`, the decode layout.
    """

    def __init__(self, config: EngineConfig, on_progress: Callable[[str], None] | None = None) -> None:
        """Raises ConfigError for what the operator can fix, EngineDeadError if a worker ends or gets stuck."""
        self._config = config
        self._plan = config.plan
        self._say = on_progress or (lambda line: None)
        self._outstanding: dict[int, tuple[float, set[int]]] = {}  # by command: when sent, ranks yet to report
        self._clock = AwakeClock()
        self._ranks = Ranks()
        try:
            self.capacity = self._start()
        except BaseException:
            self._ranks.close(grace_s=0.0)  # whoever still starts does not hear of it
            raise

    def submit(self, command: Command) -> None:
        ranks: Sequence[int]
        match command:
            case Masks():  # part of a forward that is outstanding
                self._ranks.send([self._plan.layouts[command.layout].sampling_rank(command.replica)], command)
                return
            case Forward() | Swap():
                ranks = self._plan.layouts[command.layout].replica_ranks(command.replica)
            case Transition():
                ranks = range(self._plan.world_size)
            case _:
                raise ValueError(f"{type(command).__name__} is the executor's own business")
        self._outstanding[command.id] = (self._clock.now(), set(ranks))
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
        now = self._clock.now()  # at every look, so that it goes on
        for command_id, (sent, waiting) in self._outstanding.items():
            if now - sent > timeout_s:
                ranks = f"worker ranks {sorted(waiting)}"
                self._ranks.give_up(EngineDeadError(f"{ranks} did not finish step {command_id} within {timeout_s:g} s"))
            return  # the oldest is the first

    def _start(self) -> Capacity:
        config, plan = self._config, self._plan
        device, fit, host = size_up(config, self._say)
        checkpoint = resolve_checkpoint(config.shape_source, config.load_format)
        if shape_of(checkpoint, config) != fit.geometry.shape:  # a hub's model has only now the files that say more
            device, fit, host = size_up(config, self._say)
        geometry = fit.geometry
        segments = _make_segments(host.store_bytes, fit.host_pool_bytes)
        try:
            if device == "cpu" and (num_bytes := shared_bytes(plan.layouts, *message_bytes(config, geometry.shape))):
                segments["the links between ranks"] = Segment.create_sparse(num_bytes)
            specs = [
                WorkerSpec(
                    rank=rank,
                    config=config,
                    shape=geometry.shape,
                    checkpoint=checkpoint,
                    max_model_len=fit.max_model_len,
                    num_device_blocks=fit.num_device_blocks,
                    num_host_blocks=fit.num_host_blocks,
                    device=device,
                    weights_mode=host.weights,
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

        patience = waits(config.start_timeout_s)
        num_device_blocks = min(ready.max_device_blocks for ready in self._await_all("loaded", patience))
        warming = " and warming up" if device == "cuda" else ""
        self._say(f"weights loaded; allocating {num_device_blocks} device blocks{warming}")
        self._ranks.send(range(plan.world_size), AllocatePools(num_device_blocks))
        ready = self._await_all("serving", patience)
        times = merge(plan, [rank.times for rank in ready if rank.times is not None], geometry.host_block_bytes)
        for line in speed_lines(plan, times, config.max_num_seqs):
            self._say(line)
        self._say(
            f"ready with {num_device_blocks} device and {fit.num_host_blocks} host blocks of {config.block_size} tokens"
        )
        return Capacity(
            shape=geometry.shape,
            max_model_len=fit.max_model_len,
            num_device_blocks=num_device_blocks,
            num_host_blocks=fit.num_host_blocks,
            device_block_bytes=geometry.max_device_block_bytes,
            host_block_bytes=geometry.host_block_bytes,
            device=device,
            weights=host.weights,
            times=times,
        )

    def _await_all(self, stage: str, patience: Iterator[float]) -> list[RankReady]:
        """Wait until every rank has reached a stage of start-up; by rank. A rank that ends meanwhile raises."""
        ready: dict[int, RankReady] = {}
        while len(ready) < self._plan.world_size:
            wait_s = next(patience, None)
            if wait_s is None:
                missing = sorted(set(range(self._plan.world_size)) - set(ready))
                raise EngineDeadError(
                    f"worker ranks {missing} were not ready within {self._config.start_timeout_s:g} s: "
                    "look at their log, or raise --start-timeout-s"
                )
            for message in self._ranks.wait(wait_s):
                if isinstance(message, RankReady) and message.stage == stage:
                    ready[message.rank] = message
        return [ready[rank] for rank in sorted(ready)]


def size_up(config: EngineConfig, say: Callable[[str], None]) -> tuple[str, ModelFit, HostFit]:
    """The device ("cpu" or "cuda") and all that is decided before any worker starts or weights are fetched.

    Raises ConfigError if something does not fit, EngineDeadError if GPUs cannot be measured.
    """
    shape = find_shape(config)
    fit_model(config, shape, likely_device(config))  # whatever the device is, this can be said
    num_ranks, timeout_s = config.plan.world_size, config.start_timeout_s
    device = choose_device(config, lambda: found_gpus(timeout_s), say)
    fit = fit_model(config, shape, device)
    return device, fit, fit_host(config, fit, device, lambda: free_device_bytes(num_ranks, timeout_s))


def _make_segments(store_bytes: int, pool_bytes: int) -> dict[str, Segment | None]:
    """The weight store and the host KV pool, those that have any bytes."""
    sizes = {"the weight store": store_bytes, "the host KV pool": pool_bytes}
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
