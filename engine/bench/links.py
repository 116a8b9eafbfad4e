"""Links between GPUs: what ranks exchange, timed at several sizes over NCCL. Called by `engine.bench.limits`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from engine.parallel.groups import join_world

LINK_BYTES = [1 << power for power in (14, 17, 20, 23, 26, 28)]


def measure_links(gpus: int) -> dict[str, dict[str, float]]:
    """Seconds of each collective by bytes of a rank's tensor, over NCCL as the environment has it set."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_measure_links, (gpus, folder), nprocs=gpus)
        result: dict[str, dict[str, float]] = json.loads((Path(folder) / "links.json").read_text())
        return result


def _measure_links(rank: int, gpus: int, folder: str) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    join_world(rank, gpus, Path(folder) / "rendezvous", device)
    seconds: dict[str, dict[str, float]] = {"all_reduce": {}, "all_to_all": {}, "send": {}}
    for num_bytes in LINK_BYTES:
        for name, measured in _measure_size(num_bytes, rank, gpus, device).items():
            seconds[name][str(num_bytes)] = measured
    if rank == 0:
        (Path(folder) / "links.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


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
    """As `seconds_of`, but every rank makes the same number of calls."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        work()
    dist.barrier()
    start.record()
    for _ in range(calls):
        work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / calls
