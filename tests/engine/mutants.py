"""Workers with a bug planted in their KV copies, which the parity tests' comparison must notice, or without memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from seesaw.engine.kv.copies import BlockCopier
from seesaw.engine.wire.commands import Swap
from seesaw.engine.worker import worker
from seesaw.engine.worker.spec import WorkerSpec
from seesaw.engine.worker.worker import run_worker

Damage = Callable[[torch.Tensor], None]


def _run(spec: WorkerSpec, damage: Damage) -> None:
    """As `run_worker`, but `damage` is done to what each swap-out leaves: `[blocks, layers, heads, 2, T, D]`."""
    copy = BlockCopier.copy

    def damaging_copy(self: BlockCopier, swap: Swap) -> int:
        num_bytes = copy(self, swap)
        if swap.to_host and num_bytes:
            rectangle = self._host_views[swap.layout]
            blocks = rectangle[swap.host_blocks]
            damage(blocks)
            rectangle[swap.host_blocks] = blocks
        return num_bytes

    BlockCopier.copy = damaging_copy  # type: ignore[method-assign]
    run_worker(spec)


def _exchange(x: torch.Tensor, axis: int) -> None:
    """The first two entries along an axis change places."""
    if x.shape[axis] > 1:
        x.copy_(x.index_select(axis, torch.tensor([1, 0, *range(2, x.shape[axis])])))


def swapped_heads(spec: WorkerSpec) -> None:
    _run(spec, lambda blocks: _exchange(blocks, 2))


def swapped_layers(spec: WorkerSpec) -> None:
    _run(spec, lambda blocks: _exchange(blocks, 1))


def swapped_blocks(spec: WorkerSpec) -> None:
    """Each swap leaves its predecessor's first block in place of its own. (Two full blocks of one sequence could
    change places unnoticed, and rightly so: keys carry their positions, and attention does not see the order.)"""
    last: list[torch.Tensor] = []

    def exchange_with_last(blocks: torch.Tensor) -> None:
        last.append(blocks[0].clone())
        if len(last) > 1:
            blocks[0] = last.pop(0)

    _run(spec, exchange_with_last)


def swapped_keys_and_values(spec: WorkerSpec) -> None:
    _run(spec, lambda blocks: _exchange(blocks, 3))


def no_damage(spec: WorkerSpec) -> None:
    _run(spec, lambda blocks: None)


def _run_out_of_memory(spec: WorkerSpec, name: str) -> None:
    """As `run_worker`, but on rank 1 nothing can be allocated where `name` is called."""

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    if spec.rank == 1:
        assert hasattr(worker, name)
        setattr(worker, name, fail)
    run_worker(spec)


def no_memory_for_groups(spec: WorkerSpec) -> None:
    _run_out_of_memory(spec, "make_sums")


def no_memory_for_weights(spec: WorkerSpec) -> None:
    _run_out_of_memory(spec, "open_source")


def no_memory_for_pools(spec: WorkerSpec) -> None:
    _run_out_of_memory(spec, "DevicePool")
