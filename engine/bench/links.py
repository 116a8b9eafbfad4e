"""Links between GPUs: what ranks exchange, timed at several sizes in CUDA graphs. Called by `engine.bench.limits`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from seesaw.engine.model.linear import Linear
from seesaw.engine.model.sums import Half, Sums
from seesaw.engine.parallel.groups import join_world
from seesaw.engine.parallel.peers import can_share
from seesaw.engine.parallel.process_groups import ShardGroup
from seesaw.engine.run_folder import make_run_dir, remove_run_dir
from seesaw.engine.values.config import CustomAllReduce

SUM_COLUMNS = 8192
LINK_BYTES = [1 << power for power in (14, 17, 20, 23, 26, 28)]


def measure_links(gpus: int, custom_all_reduce: CustomAllReduce = "auto") -> dict[str, dict[str, float]]:
    """Seconds of each exchange by bytes of a rank's tensor.

    `sum` is what the engine's tensor shards do in each half of a layer: an all-reduce over shared memory, the residual
    stream and norms included, or NCCL's where they share none or may not. The others are NCCL's, as the environment has
    it set.
    """
    folder = make_run_dir()
    try:
        spawn(_measure_links, (gpus, folder, custom_all_reduce), nprocs=gpus)
        result: dict[str, dict[str, float]] = json.loads((folder / "links.json").read_text())
        return result
    finally:
        remove_run_dir(folder)


def _measure_links(rank: int, gpus: int, folder: Path, custom_all_reduce: CustomAllReduce) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    join_world(rank, gpus, folder / "rendezvous", device)
    seconds: dict[str, dict[str, float]] = {"sum": {}, "all_reduce": {}, "all_to_all": {}, "send": {}}
    sums = _peer_sums(rank, gpus, device, custom_all_reduce)
    for num_bytes in LINK_BYTES:
        measured = _measure_size(num_bytes, rank, gpus, device)
        measured["sum"] = measured["all_reduce"] if sums is None else _measure_sum(sums, num_bytes, device)
        for name in seconds:
            seconds[name][str(num_bytes)] = measured[name]
    if rank == 0:
        (folder / "links.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


def _peer_sums(rank: int, gpus: int, device: torch.device, custom_all_reduce: CustomAllReduce) -> Sums | None:
    group = ShardGroup(range(gpus), rank, dist.new_group(list(range(gpus))))
    if not can_share(group, device, custom_all_reduce):
        return None
    from seesaw.engine.model.peer_sums import PeerSums  # needs Triton

    return PeerSums(group, LINK_BYTES[-1] // 2 // SUM_COLUMNS, SUM_COLUMNS, torch.bfloat16, device)


def _measure_sum(sums: Sums, num_bytes: int, device: torch.device) -> float:
    rows = num_bytes // 2 // SUM_COLUMNS
    residual = torch.zeros(rows, SUM_COLUMNS, dtype=torch.bfloat16, device=device)
    weight = torch.ones(SUM_COLUMNS, dtype=torch.bfloat16, device=device)
    linear = Linear(torch.zeros(SUM_COLUMNS, 16, dtype=torch.bfloat16, device=device))
    part = sums.product(residual[:, :16], linear, Half.ATTENTION)
    return _seconds_together(lambda: sums.add_norm(part, residual, weight, 1e-5))


def _measure_size(num_bytes: int, rank: int, gpus: int, device: torch.device) -> dict[str, float]:
    x, y = (torch.zeros(num_bytes // 2, dtype=torch.bfloat16, device=device) for _ in range(2))
    ring = [dist.P2POp(dist.isend, x, (rank + 1) % gpus), dist.P2POp(dist.irecv, y, (rank - 1) % gpus)]

    def pass_on() -> None:
        for request in dist.batch_isend_irecv(ring):
            request.wait()

    return {
        "all_reduce": _seconds_together(lambda: dist.all_reduce(x)),
        "all_to_all": _seconds_together(lambda: dist.all_to_all_single(y, x)),
        "send": _seconds_together(pass_on),
    }


def _seconds_together(work: Callable[[], Any], calls: int = 20) -> float:
    """Seconds of one of `calls` in a graph, which spares small messages the host's launches. All ranks call it."""
    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(calls):
            work()
    graph.replay()
    torch.cuda.synchronize()
    dist.barrier()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / calls
