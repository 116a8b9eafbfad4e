"""The worker process: one rank with one device. Started by `engine.executor.ranks` from the fork server.

It makes itself ready, then executes the engine's commands in order until `Shutdown`. The fork server has
imported this module (and torch), so a worker starts in a moment; nothing here may touch CUDA on import.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial

import torch
import torch.distributed as dist
import zmq

from seesaw.engine.cost.rank_times import RankTimes
from seesaw.engine.device.moments import seconds_of
from seesaw.engine.device.out_of_memory import memory_errors
from seesaw.engine.device.reports import EventReports
from seesaw.engine.heap import tame_collector
from seesaw.engine.kv.copies import BlockCopier, Copies, ThreadCopies, make_copier
from seesaw.engine.kv.device_pool import DevicePool
from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.kv.host_pool import HostPool
from seesaw.engine.kv.segment import register
from seesaw.engine.model.sums import Sums, make_sums
from seesaw.engine.ops.base import Ops, make_ops
from seesaw.engine.parallel.groups import LayoutGroups, Links, build_groups, join_world
from seesaw.engine.parallel.process_groups import ProcessLinks
from seesaw.engine.parallel.shared_memory import SharedLinks
from seesaw.engine.printing import drain, print_in_background
from seesaw.engine.sizing.gpus import gpu_blocks, in_flight_bytes
from seesaw.engine.sizing.host_memory import message_bytes
from seesaw.engine.sizing.pools import device_option
from seesaw.engine.supervision import follow_parent
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.weights.arena import rank_arena
from seesaw.engine.weights.loader import open_source
from seesaw.engine.weights.modes import ArenaWeights, ReloadWeights, Weights
from seesaw.engine.weights.store import WeightStore
from seesaw.engine.wire.commands import (
    AllocatePools,
    Command,
    Forward,
    RankReady,
    Report,
    Shutdown,
    Swap,
    Transition,
    num_slots,
)
from seesaw.engine.worker.completion import Completion
from seesaw.engine.worker.graphs import buckets
from seesaw.engine.worker.inbox import Inbox, StoppedError
from seesaw.engine.worker.outbox import Outbox
from seesaw.engine.worker.rank_timing import time_rank
from seesaw.engine.worker.reshard import reshard
from seesaw.engine.worker.runner import Runner
from seesaw.engine.worker.spec import WorkerSpec

MORE_ROOM = "more devices (a larger T or P degree) or a smaller model"


def rehearsed_sizes(max_num_batched_tokens: int) -> list[int]:
    """Tokens of the steps to rehearse: FlashInfer's kernels differ for long chunks, short ones and single tokens.

    None has more than a step may have: the shards' sums have room for no more.
    """
    return sorted({max_num_batched_tokens, min(64, max_num_batched_tokens), 1}, reverse=True)


def run_worker(spec: WorkerSpec) -> None:
    """The process's main function. Ends with 0 after `Shutdown`, with 1 after saying why."""
    follow_parent()
    print_in_background()
    outbox = Outbox(spec.rank, spec.reports_address)
    try:
        Worker(spec, outbox).run()
    except BaseException as error:
        if not spec.run_dir.is_dir():  # the engine has ended and taken it along; this process is about to hear of it
            os._exit(1)
        _die(outbox, error)
    outbox.close()


def _die(outbox: Outbox, error: BaseException) -> None:
    """Say why and end, at once: exit handlers could wait for peers that are gone."""
    if not isinstance(error, ConfigError):  # that one is for the operator, and told in one sentence
        traceback.print_exception(error)
    outbox.fail(error)
    drain()
    os._exit(1)


def device_of(spec: WorkerSpec) -> torch.device:
    return torch.device("cuda", spec.rank) if spec.device == "cuda" else torch.device("cpu")


def share_cores(device: torch.device, world_size: int) -> None:
    """Compute with this worker's share of the cores, or with OMP_NUM_THREADS where that is set: who sets it knows what
    else they have to do, and threads that wait for one that has no core cost many times a step."""
    if device.type == "cuda":
        torch.set_num_threads(1)  # what is left to the host is small, and waking threads for it costs milliseconds
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world_size))


class Worker:
    """One rank's state and its loop."""

    def __init__(self, spec: WorkerSpec, outbox: Outbox) -> None:
        self._spec = spec
        self._outbox = outbox
        self._plan = spec.config.plan
        self._geometry = KVGeometry(spec.shape, self._plan, spec.config.block_size)
        self._device = device_of(spec)
        self._groups: list[LayoutGroups] = []
        self._weights: Weights
        self._ops: Ops
        self._sums: list[Sums] = []
        self._runner: Runner
        self._copies: Copies | None = None
        self._reports: EventReports | None = None  # of forwards on CUDA

    def run(self) -> None:
        """Start up, then execute commands until `Shutdown`."""
        spec = self._spec
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            # Not the default stream: work on that one would wait for copies and receives beside it.
            torch.cuda.set_stream(torch.cuda.Stream(self._device))
        share_cores(self._device, self._plan.world_size)
        with zmq.Context() as context, closing(Inbox(context, spec.commands_address)) as inbox:
            # Refuses a GPU that cannot run this, before anything slow.
            self._ops = make_ops(self._device, spec.shape, spec.config.block_size, spec.config.attention_backend)
            timeout_s = spec.config.communication_timeout_s
            less = "lower --max-num-batched-tokens, or free what other processes hold of it"
            with memory_errors("communication", self._device, less):
                join_world(spec.rank, self._plan.world_size, spec.run_dir / "rendezvous", self._device, timeout_s)
                self._groups = build_groups(spec.rank, self._plan.layouts, self._make_links(), self._device)
                self._sums = [self._make_sums(groups) for groups in self._groups]
            with memory_errors("weights", self._device, f"use {MORE_ROOM}"):
                self._weights = self._load()
            self._outbox.send(RankReady(spec.rank, "loaded", self._max_device_blocks()))
            with suppress(StoppedError):
                while not isinstance(command := inbox.next(), Shutdown):
                    self._execute(command, inbox)
        for beside in (self._copies, self._reports):
            if beside is not None:
                beside.close()
        dist.destroy_process_group()

    def _execute(self, command: Command, inbox: Inbox) -> None:
        rank = self._spec.rank
        match command:
            case Forward():
                self._report(command.id, self._runner.execute(command, inbox.masks))
            case Swap():
                if self._copies is None:
                    raise ValueError("a static plan has no host pool to swap with")
                self._copies.submit(command)  # reports by itself
            case Transition():
                start = time.perf_counter()
                moved_bytes = reshard(command, self._weights, self._runner)
                self._outbox.send(Report(rank, command.id, seconds=time.perf_counter() - start, bytes=moved_bytes))
            case AllocatePools():
                less = f"lower {device_option(self._spec.config)} or --max-num-seqs, or use {MORE_ROOM}"
                with memory_errors("KV and CUDA graphs", self._device, less):
                    times = self._allocate(command.num_device_blocks)
                tame_collector()
                self._outbox.send(RankReady(rank, "serving", times=times))

    def _report(self, id: int, completion: Completion) -> None:
        """Report a launched step once it is done, without waiting for the device here."""

        def report() -> Report:
            return completion.report(self._spec.rank, id)

        if self._reports is None or isinstance(completion.end, float):
            self._outbox.send(report())
        else:
            self._reports.add(completion.end, report)

    def _load(self) -> Weights:
        """This rank's weights, in `Plan.first`. Ranks that share a store fill it together."""
        spec, plan = self._spec, self._plan
        source = open_source(spec.checkpoint, spec.shape, spec.config.load_format, spec.config.seed, self._device)
        if spec.weight_segment is None:
            arenas = [rank_arena(spec.shape, plan, layout, spec.rank) for layout in plan.layouts]
            weights: Weights = ArenaWeights(arenas, source, self._device)
            weights.switch(plan.index(plan.first))
            return weights
        memory = spec.weight_segment.map()
        spec.weight_segment.close()
        store = WeightStore(spec.shape, plan, memory)
        if self._device.type == "cuda":
            register(memory, store.arena.starts)
        store.fill(source, spec.rank, self._device)
        dist.barrier()  # from here on the store is only read
        weights = ReloadWeights(store, spec.rank, self._device, spec.poison_weights)
        weights.switch(plan.index(plan.first))
        return weights

    def _max_device_blocks(self) -> int:
        """The blocks that this rank has room for. On CUDA this also compiles and loads all kernels."""
        spec = self._spec
        if self._device.type != "cuda":
            assert spec.num_device_blocks is not None
            return spec.num_device_blocks
        with memory_errors("the largest step", self._device, f"lower --max-num-batched-tokens, or use {MORE_ROOM}"):
            peak_bytes = self._rehearse()
        free_bytes, _ = torch.cuda.mem_get_info(self._device)
        return gpu_blocks(spec.config, self._geometry, spec.max_model_len, spec.rank, free_bytes, peak_bytes)

    def _rehearse(self) -> int:
        """Run the largest steps of every layout over a pool without blocks; returns the bytes that they need."""
        spec, config = self._spec, self._spec.config
        runner = self._make_runner(DevicePool(self._geometry, spec.rank, 0, self._device))
        before_bytes = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        for _ in self._every_layout(runner):
            for num_tokens in rehearsed_sizes(config.max_num_batched_tokens):
                runner.rehearse(num_tokens, min(num_tokens, config.max_num_seqs))
            torch.cuda.synchronize()
        peak_bytes = torch.cuda.max_memory_allocated() - before_bytes
        torch.cuda.empty_cache()
        return peak_bytes + in_flight_bytes(config, spec.shape)

    def _every_layout(self, runner: Runner) -> Iterator[tuple[int, float]]:
        """Be in each layout of the plan in turn, in `Plan.first` at the end; and how long the weights took."""
        first, count = self._plan.index(self._plan.first), len(self._plan.layouts)
        for layout in ((first + turn) % count for turn in range(1, count + 1)):
            dist.barrier()  # in a transition, too, all ranks change them at once
            seconds = seconds_of(partial(self._weights.switch, layout), self._device)
            runner.change_layout(layout)
            yield layout, seconds

    def _make_links(self) -> Links:
        spec = self._spec
        if self._device.type == "cuda":
            return ProcessLinks(spec.rank, spec.config.communication_timeout_s)
        memory = torch.empty(0, dtype=torch.uint8)
        if spec.links_segment is not None:
            memory = spec.links_segment.map()
            spec.links_segment.close()
        return SharedLinks(spec.rank, self._plan.layouts, *message_bytes(spec.config, spec.shape), memory)

    def _make_sums(self, groups: LayoutGroups) -> Sums:
        config = self._spec.config
        max_rows = max(config.max_num_batched_tokens, buckets(config.max_num_seqs)[-1])
        return make_sums(self._ops, groups.tensor, self._spec.shape, max_rows, self._device, config.custom_all_reduce)

    def _make_runner(self, pool: DevicePool) -> Runner:
        slots, max_len = num_slots(self._spec.config.max_num_seqs), self._spec.max_model_len
        return Runner(self._geometry, pool, self._weights, self._groups, self._sums, self._ops, slots, max_len)

    def _allocate(self, num_device_blocks: int) -> RankTimes:
        """Both pools and what works on them. Returns how long that takes, timed before the pools hold anything."""
        spec, geometry = self._spec, self._geometry
        pool = DevicePool(geometry, spec.rank, num_device_blocks, self._device)
        host = copier = None
        if spec.kv_segment is not None:
            memory = spec.kv_segment.map()
            spec.kv_segment.close()
            if self._device.type == "cuda":
                register(memory, range(0, memory.numel(), geometry.host_block_bytes))
            host = HostPool(geometry, spec.num_host_blocks, memory)
            copier = make_copier(geometry, spec.rank, pool, host)
        self._runner = self._make_runner(pool)
        if self._device.type == "cpu":
            list(self._every_layout(self._runner))  # on CUDA it was in each before: first changes are not timed
        layouts = self._every_layout(self._runner)
        times = time_rank(self._runner, geometry, self._groups, pool, copier, spec.config, spec.max_model_len, layouts)
        if spec.poison_kv:
            pool.poison()
            dist.barrier()  # all have timed their swaps with the host pool
            if host is not None and spec.rank == 0:
                host.poison()
        if copier is not None:
            self._copies = self._make_copies(copier)
        if self._device.type == "cuda":
            self._reports = self._make_reports()
        return times

    def _make_copies(self, copier: BlockCopier) -> Copies:
        spec = self._spec
        if self._device.type == "cuda":
            from seesaw.engine.kv.cuda_copies import CudaCopies

            return CudaCopies(spec.rank, copier, self._device, self._make_reports, self._die)
        outbox = Outbox(spec.rank, spec.reports_address)  # its own: sockets belong to one thread
        return ThreadCopies(spec.rank, copier, outbox.send, lambda error: _die(outbox, error))

    def _die(self, error: BaseException) -> None:
        """In a thread without an outbox."""
        _die(Outbox(self._spec.rank, self._spec.reports_address), error)

    def _make_reports(self) -> EventReports:
        outbox = Outbox(self._spec.rank, self._spec.reports_address)
        return EventReports(self._device, outbox.send, lambda error: _die(outbox, error))
