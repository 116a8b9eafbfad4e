"""Sums over memory that the shards share: reduction, residual stream and norm in one kernel.

Of many rows each belongs to one shard. It reads that row's parts from all shards, adds them to its own row of the
residual stream and writes the norm back to all, in 8 bits where a product wants those: a two-shot all-reduce, with
sequence-parallel norms in the middle. Against NCCL's all-reduce and a norm on every shard it moves as much over the
links or less, norms `1 / size` of the rows, and is one launch. Of few rows, where waiting for each other takes longer
than moving data, every shard reads all parts and keeps the result to itself: a one-shot all-reduce, which waits once.

torch's symmetric-memory operations reduce without norms. FlashInfer's fused ones allocate NVLink multicast memory,
which we never use.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from seesaw.engine.model.linear import Linear
from seesaw.engine.model.sums import Half, Sums
from seesaw.engine.ops.fp8 import E4M3, Activation, Fp8Format, Quantized
from seesaw.engine.ops.fp8_kernels import scale_of, to_e4m3
from seesaw.engine.parallel.peers import PeerTensor
from seesaw.engine.parallel.process_groups import ShardGroup

_MAX_PROGRAMS = 128  # an H100 has 132 multiprocessors
ONE_SHOT_BYTES = 3 << 19  # that a shard reads from others at most, where each sums for itself


class PeerSums(Sums):
    """Of one stage on GPUs that reach each other's memory; works in CUDA graphs.

    No shard overwrites what another still reads. A two-shot kernel ends when all shards' programs have read and
    written. A one-shot kernel only waits until all have begun, that is behind their products: they have read the parts
    of the sum before, but may still be reading this one's. So each half of a layer has a buffer of its own, and what
    belongs to neither, an embedding, is summed in two shots.
    """

    def __init__(
        self,
        group: ShardGroup,
        max_rows: int,
        hidden: int,
        dtype: torch.dtype,
        device: torch.device,
        rounds: Callable[[torch.Tensor, Fp8Format], Quantized] | None = None,
        one_shot_bytes: int = ONE_SHOT_BYTES,
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
        # How often each program's counterparts have told it something, and how often it has waited for that.
        self._flags = PeerTensor(group, 1, self._max_programs * group.size, torch.int32, device)
        self._waits = torch.zeros(self._max_programs, dtype=torch.int32, device=device)
        most = one_shot_bytes // (hidden * dtype.itemsize * (group.size - 1))
        self._one_shot_rows = min(
            most, max_rows, self._max_programs
        )  # a second row of a program would wait for its first
        self._buffer = PeerTensor(group, max_rows, hidden, dtype, device)  # holds one part, and then its norm
        self._second = PeerTensor(group, max(1, self._one_shot_rows), hidden, dtype, device)
        if rounds is not None:
            self._data = PeerTensor(group, max_rows, hidden, E4M3, device)
            self._scales = PeerTensor(group, max_rows, 1, torch.float32, device)

    def product(self, x: Activation, linear: Linear, half: Half) -> torch.Tensor:
        rows = x.data.shape[0]  # of a tensor, `data` is itself
        buffer = self._second if half is Half.MLP and rows <= self._one_shot_rows else self._buffer
        return linear.product(x, out=_rows(buffer, rows))

    def add_norm(
        self,
        part: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        format: Fp8Format | None = None,
    ) -> tuple[Activation, torch.Tensor]:
        rounding = format if format is not None and format.group is None else None  # the kernel's own
        out: Activation | None = None
        if len(part) <= self._one_shot_rows:
            out = torch.empty_like(part)
            if rounding is not None:
                out = Quantized(torch.empty_like(part, dtype=E4M3), part.new_empty(len(part), 1, dtype=torch.float32))
        self._reduce(part, residual, weight, eps, rounding, out)
        if out is None and rounding is not None:
            out = Quantized(self._data.local[: len(part)], self._scales.local[: len(part)])
        elif out is None:
            out = part
        if format is not None and isinstance(out, torch.Tensor):
            assert self._round is not None
            out = self._round(out, format)
        return out, residual

    def total(self, part: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        if residual is not None and len(part) <= self._one_shot_rows:
            out = torch.empty_like(part)
            self._reduce(part, residual, None, 0.0, None, out)
            return out
        rows = _rows(self._buffer, len(part))
        if part.data_ptr() != rows.data_ptr():
            rows.copy_(part)
        self._reduce(rows, residual, None, 0.0, None, None)
        return rows.clone()

    def _reduce(
        self,
        part: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor | None,
        eps: float,
        format: Fp8Format | None,
        out: Activation | None,
    ) -> None:
        """In one shot, to `out`; or in two, to every shard's buffer, of 8 bits if there is a format."""
        rows, hidden = part.shape
        buffer = self._second if part.data_ptr() == self._second.local.data_ptr() else self._buffer
        owners = self._size if out is None else 1  # of rows
        shares_8_bits = format is not None and out is None
        _reduce_rows[(min(self._max_programs, triton.cdiv(rows, owners)),)](
            part,
            buffer.addresses,
            self._flags.addresses,
            self._waits,
            residual,
            weight,
            None if format is None else format.scale,
            self._data.addresses if shares_8_bits else None,
            self._scales.addresses if shares_8_bits else None,
            None if out is None else out.data,
            out.scales if isinstance(out, Quantized) else None,
            rows,
            hidden,
            eps,
            self._shard,
            SIZE=self._size,
            BLOCK=triton.next_power_of_2(hidden),
            num_warps=min(16, max(4, triton.next_power_of_2(hidden) // 512)),
        )


def _rows(buffer: PeerTensor, count: int) -> torch.Tensor:
    if count > len(buffer.local):
        raise ValueError(f"{count} rows do not fit a buffer of {len(buffer.local)}")
    return buffer.local[:count]


@triton.jit(do_not_specialize=["rows"])  # the first step of some size must not wait for a compiler
def _reduce_rows(  # type: ignore[no-untyped-def]
    part,
    addresses,
    flag_addresses,
    waits,
    residual,
    weight,
    known,
    data_addresses,
    scale_addresses,
    out,
    out_scales,
    rows,
    hidden,
    eps,
    shard,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """In two shots, unless there is an `out`; in 8 bits, if there are scales."""
    element = part.dtype.element_ty
    columns = tl.arange(0, BLOCK)
    mask = columns < hidden
    wait = tl.load(waits + tl.program_id(0))
    _tell(flag_addresses, shard, SIZE)
    if weight is not None:
        scale = tl.load(weight + columns, mask, other=0.0).to(tl.float32)
    _await(flag_addresses, shard, wait + 1, SIZE)  # all shards' parts are there
    if out is None:
        # Neighbouring rows belong to different shards: then few rows are even work, too.
        first, step = tl.program_id(0) * SIZE + shard, tl.num_programs(0) * SIZE
    else:
        first, step = tl.program_id(0), tl.num_programs(0)
    for row in range(first, rows, step):
        offsets = tl.cast(row, tl.int64) * hidden + columns
        total = tl.zeros((BLOCK,), tl.float32)
        for peer in tl.static_range(SIZE):
            # In two shots each shard begins with itself, so that not all read from one. In one, all add in one order,
            # to the same bits.
            owner = (shard + peer) % SIZE if out is None else peer
            source = tl.load(addresses + owner).to(tl.pointer_type(element))
            total += tl.load(tl.multiple_of(source, 16) + offsets, mask, other=0.0).to(tl.float32)
        if residual is not None:
            total += tl.load(residual + offsets, mask, other=0.0).to(tl.float32)
            tl.store(residual + offsets, total.to(element), mask)
        if weight is not None:
            total *= tl.rsqrt(tl.sum(total * total, 0) / hidden + eps) * scale
        if data_addresses is not None or out_scales is not None:
            values = total.to(element).to(tl.float32)
            if known is not None:
                row_scale = tl.load(known)
            else:
                row_scale = scale_of(tl.max(tl.abs(values), 0))
            rounded = to_e4m3(values, row_scale)
            if out is not None:
                tl.store(out + offsets, rounded, mask)
                tl.store(out_scales + row, row_scale)
            else:
                for peer in tl.static_range(SIZE):
                    data = tl.load(data_addresses + (shard + peer) % SIZE).to(tl.pointer_type(tl.float8e4nv))
                    tl.store(tl.multiple_of(data, 16) + offsets, rounded, mask)
                    tl.store(tl.load(scale_addresses + peer).to(tl.pointer_type(tl.float32)) + row, row_scale)
        elif out is not None:
            tl.store(out + offsets, total.to(element), mask)
        else:
            for peer in tl.static_range(SIZE):
                target = tl.load(addresses + (shard + peer) % SIZE).to(tl.pointer_type(element))
                tl.store(tl.multiple_of(target, 16) + offsets, total.to(element), mask)
    if out is None:
        _tell(flag_addresses, shard, SIZE)
        _await(flag_addresses, shard, wait + 2, SIZE)  # all shards' rows are here, and nobody reads ours any more
        tl.store(waits + tl.program_id(0), wait + 2)
    else:
        tl.store(waits + tl.program_id(0), wait + 1)


@triton.jit
def _tell(flag_addresses, shard, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Tell this program's counterpart on every other shard that all before this is done, and visible to it."""
    tl.debug_barrier()
    for peer in tl.static_range(SIZE):
        if peer != shard:
            flags = tl.load(flag_addresses + peer).to(tl.pointer_type(tl.int32))
            # An addition whose result nobody wants does not wait for its way back over the link.
            tl.atomic_add(flags + tl.program_id(0) * SIZE + shard, 1, sem="release", scope="sys")


@triton.jit
def _await(flag_addresses, shard, count, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Wait until every counterpart has told this program so often, modulo 2^32."""
    flags = tl.load(flag_addresses + shard).to(tl.pointer_type(tl.int32))
    for peer in tl.static_range(SIZE):
        if peer != shard:
            flag = flags + tl.program_id(0) * SIZE + peer
            while tl.atomic_add(flag, 0, sem="acquire", scope="sys") - count < 0:
                pass
    tl.debug_barrier()
