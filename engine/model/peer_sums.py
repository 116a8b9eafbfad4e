"""Sums over memory that the shards share: reduction, residual stream and norm in one kernel.

A row belongs to one shard. It reads that row's parts from all shards, adds them to its own row of the residual stream
and writes the norm back to all, in 8 bits where a product wants those: a two-shot all-reduce, with sequence-parallel
norms in the middle. Against NCCL's all-reduce and a norm on every shard it moves as much over the links or less, norms
`1 / size` of the rows, and is one launch.

torch's symmetric-memory operations reduce without norms. FlashInfer's fused ones allocate NVLink multicast memory,
which we never use.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from engine.model.linear import Linear
from engine.model.sums import Sums
from engine.ops.fp8 import E4M3, Activation, Fp8Format, Quantized
from engine.ops.fp8_kernels import scale_of, to_e4m3
from engine.parallel.peers import PeerTensor
from engine.parallel.process_groups import ShardGroup

_MAX_PROGRAMS = 128  # an H100 has 132 multiprocessors


class PeerSums(Sums):
    """Of one stage on GPUs that reach each other's memory; works in CUDA graphs.

    No shard overwrites what another still reads: a kernel ends when all shards' programs have read and written, and the
    next one reads and writes when all have begun, that is behind their products.
    """

    def __init__(
        self,
        group: ShardGroup,
        max_rows: int,
        hidden: int,
        dtype: torch.dtype,
        device: torch.device,
        rounds: Callable[[torch.Tensor, Fp8Format], Quantized] | None = None,
    ) -> None:
        """`rounds`: what norms are rounded with where they are wanted in 8 bits, and a row has several scales.

        Collective over the group. Raises ConfigError.
        """
        self._round = rounds
        self._shard = group.shard
        self._size = group.size
        # A program waits for its counterparts on the other shards, so all of them must fit on a GPU at once.
        multiprocessors = (torch.cuda.get_device_properties(gpu).multi_processor_count for gpu in group.ranks)
        self._max_programs = min(_MAX_PROGRAMS, *multiprocessors)
        # For a program of each shard to wait for its counterparts; each kernel leaves them at zero.
        self._flags = PeerTensor(group, 1, self._max_programs * group.size, torch.int32, device)
        self._buffer = PeerTensor(group, max_rows, hidden, dtype, device)  # holds one part, and then its norm
        if rounds is not None:
            self._data = PeerTensor(group, max_rows, hidden, E4M3, device)
            self._scales = PeerTensor(group, max_rows, 1, torch.float32, device)

    def product(self, x: Activation, linear: Linear) -> torch.Tensor:
        return linear.product(x, out=self._rows(x.data.shape[0]))  # of a tensor, `data` is itself

    def add_norm(
        self,
        part: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        format: Fp8Format | None = None,
    ) -> tuple[Activation, torch.Tensor]:
        if format is not None and format.group is None:
            self._reduce(part, residual, weight, eps, format)
            return Quantized(self._data.local[: len(part)], self._scales.local[: len(part)]), residual
        self._reduce(part, residual, weight, eps)
        if format is None:
            return part, residual
        assert self._round is not None
        return self._round(part, format), residual

    def total(self, part: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        rows = self._rows(len(part))
        if part.data_ptr() != rows.data_ptr():
            rows.copy_(part)
        self._reduce(rows, residual, None, 0.0)
        return rows.clone()

    def _rows(self, count: int) -> torch.Tensor:
        if count > len(self._buffer.local):
            raise ValueError(f"{count} rows do not fit a buffer of {len(self._buffer.local)}")
        return self._buffer.local[:count]

    def _reduce(
        self,
        part: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor | None,
        eps: float,
        format: Fp8Format | None = None,
    ) -> None:
        rows, hidden = part.shape
        _reduce_rows[(min(self._max_programs, triton.cdiv(rows, self._size)),)](
            part,
            self._buffer.addresses,
            self._flags.addresses,
            residual,
            weight,
            None if format is None else format.scale,
            None if format is None else self._data.addresses,
            None if format is None else self._scales.addresses,
            rows,
            hidden,
            eps,
            self._shard,
            SIZE=self._size,
            BLOCK=triton.next_power_of_2(hidden),
            num_warps=min(16, max(4, triton.next_power_of_2(hidden) // 512)),
        )


@triton.jit(do_not_specialize=["rows"])  # the first step of some size must not wait for a compiler
def _reduce_rows(  # type: ignore[no-untyped-def]
    part,
    addresses,
    flag_addresses,
    residual,
    weight,
    known,
    data_addresses,
    scale_addresses,
    rows,
    hidden,
    eps,
    shard,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    element = part.dtype.element_ty
    columns = tl.arange(0, BLOCK)
    mask = columns < hidden
    _raise_flags(flag_addresses, shard, SIZE)
    if weight is not None:
        scale = tl.load(weight + columns, mask, other=0.0).to(tl.float32)
    _await_flags(flag_addresses, shard, SIZE)  # all shards' parts are there
    # Neighbouring rows belong to different shards: then few rows are even work, too.
    for row in range(tl.program_id(0) * SIZE + shard, rows, tl.num_programs(0) * SIZE):
        offsets = tl.cast(row, tl.int64) * hidden + columns
        total = tl.zeros((BLOCK,), tl.float32)
        for peer in tl.static_range(SIZE):
            # Each shard begins with itself, so that not all read from one.
            source = tl.load(addresses + (shard + peer) % SIZE).to(tl.pointer_type(element))
            total += tl.load(tl.multiple_of(source, 16) + offsets, mask, other=0.0).to(tl.float32)
        if residual is not None:
            total += tl.load(residual + offsets, mask, other=0.0).to(tl.float32)
            tl.store(residual + offsets, total.to(element), mask)
        if weight is not None:
            total *= tl.rsqrt(tl.sum(total * total, 0) / hidden + eps) * scale
        if data_addresses is not None:
            values = total.to(element).to(tl.float32)
            if known is not None:
                row_scale = tl.load(known)
            else:
                row_scale = scale_of(tl.max(tl.abs(values), 0))
            rounded = to_e4m3(values, row_scale)
            for peer in tl.static_range(SIZE):
                data = tl.load(data_addresses + (shard + peer) % SIZE).to(tl.pointer_type(tl.float8e4nv))
                tl.store(tl.multiple_of(data, 16) + offsets, rounded, mask)
                tl.store(tl.load(scale_addresses + peer).to(tl.pointer_type(tl.float32)) + row, row_scale)
        else:
            for peer in tl.static_range(SIZE):
                target = tl.load(addresses + (shard + peer) % SIZE).to(tl.pointer_type(element))
                tl.store(tl.multiple_of(target, 16) + offsets, total.to(element), mask)
    _raise_flags(flag_addresses, shard, SIZE)
    _await_flags(flag_addresses, shard, SIZE)  # all shards' rows are here, and nobody reads ours any more


@triton.jit
def _raise_flags(flag_addresses, shard, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Tell this program's counterpart on every other shard that all before this is done, and visible to it."""
    tl.debug_barrier()
    for peer in tl.static_range(SIZE):
        if peer != shard:
            flags = tl.load(flag_addresses + peer).to(tl.pointer_type(tl.int32))
            # The counterpart may not have taken down the last one yet.
            while tl.atomic_cas(flags + tl.program_id(0) * SIZE + shard, 0, 1, sem="release", scope="sys") != 0:
                pass


@triton.jit
def _await_flags(flag_addresses, shard, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Wait until every counterpart has raised its flag here, and take the flags down."""
    flags = tl.load(flag_addresses + shard).to(tl.pointer_type(tl.int32))
    for peer in tl.static_range(SIZE):
        if peer != shard:
            while tl.atomic_cas(flags + tl.program_id(0) * SIZE + peer, 1, 0, sem="acquire", scope="sys") != 1:
                pass
    tl.debug_barrier()
