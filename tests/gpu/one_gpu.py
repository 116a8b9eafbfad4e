"""Several ranks on one GPU: real worker processes and CUDA throughout, with gloo between them instead of NCCL.

NCCL wants a GPU for each rank, and most hosts have one. So the tensors that ranks exchange go through host memory here,
and steps with all-reduces run without graphs. All else is the engine's: its runner, copies, weights and commands.
Names in `engine` are replaced inside the worker processes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist

from seesaw.engine.executor.gpus import free_device_bytes
from seesaw.engine.parallel import groups, process_groups
from seesaw.engine.parallel.groups import Pending
from seesaw.engine.worker import runner, worker
from seesaw.engine.worker.spec import WorkerSpec

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start all workers of this test on the first GPU."""
    monkeypatch.setattr("seesaw.engine.executor.processes.choose_device", lambda *_: "cuda")
    monkeypatch.setattr("seesaw.engine.executor.processes.free_device_bytes", _shares)
    monkeypatch.setattr("seesaw.engine.executor.ranks.run_worker", run_worker)


def _shares(num_ranks: int, timeout_s: float) -> list[int]:
    """What each rank may take of the one GPU."""
    return [free_device_bytes(1, timeout_s)[0] // num_ranks] * num_ranks


def run_worker(spec: WorkerSpec) -> None:
    join = groups.join_world
    replacements: list[tuple[Any, str, Any]] = [
        (worker, "device_of", lambda spec: CUDA),
        (worker, "join_world", lambda rank, size, path, device, timeout_s: join(rank, size, path, CPU, timeout_s)),
        (process_groups, "ShardGroup", _ShardGroup),
        (process_groups, "ProcessLink", _ProcessLink),
        (runner.Runner, "capture", _capture),
    ]
    for owner, name, replacement in replacements:
        assert hasattr(owner, name)
        setattr(owner, name, replacement)
    worker.run_worker(spec)


_capture_graphs = runner.Runner.capture


def _capture(self: runner.Runner, max_rows: int) -> None:
    if self._groups[self.layout].tensor.size == 1:
        _capture_graphs(self, max_rows)


class _ShardGroup(process_groups.ShardGroup):
    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x.copy_(super().all_reduce(x.cpu()))

    def gather_last(self, x: torch.Tensor) -> torch.Tensor | None:
        gathered = super().gather_last(x.cpu())
        return None if gathered is None else gathered.to(x.device)


class _ProcessLink(process_groups.ProcessLink):
    def send(self, x: torch.Tensor) -> None:
        super().send(x.cpu())

    def post(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Pending:
        return _Incoming(torch.empty(shape, dtype=dtype), self._sender, self._group)


class _Incoming(Pending):
    def __init__(self, x: torch.Tensor, sender: int, group: process_groups.Group) -> None:
        self._x = x
        self._work = dist.irecv(x, sender, group=group)  # before the sender waits: gloo does not buffer

    def wait(self) -> torch.Tensor:
        assert self._work is not None
        self._work.wait()
        return self._x.to(CUDA)
