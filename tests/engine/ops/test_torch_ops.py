"""Paged attention in plain torch against a naive one, over pools with NaN wherever nothing was written."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.engine.ops import torch as torch_ops
from seesaw.engine.ops.base import BatchInputs
from seesaw.engine.ops.torch import TorchOps
from tests.tiny import CPU, tiny_shape

BLOCK_SIZE = 4
DIM = 8


def _naive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """The last `len(q)` positions attend to `k` and `v` `[context, kv_heads, dim]`, in float64."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * DIM**-0.5
    hidden = torch.ones(len(q), len(k), dtype=torch.bool).triu(len(k) - len(q) + 1)  # the future
    if window is not None:
        hidden |= torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q) - window)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v).flatten(1).float()


def _pool(num_blocks: int, kv_heads: int) -> torch.Tensor:
    """A layer's view of a pool of two layers, whose stride leaves padding between blocks."""
    cell = 2 * BLOCK_SIZE * DIM
    stride = (2 * kv_heads + 1) * cell
    flat = torch.full((num_blocks * stride,), torch.nan)
    return flat.as_strided(
        (num_blocks, kv_heads, 2, BLOCK_SIZE, DIM), (stride, cell, BLOCK_SIZE * DIM, DIM, 1), kv_heads * cell
    )


def _step(
    query_lens: list[int], context_lens: list[int], heads: int, kv_heads: int, seed: int, window: int | None = None
) -> None:
    """Write random histories and one step through the ops, and compare the step's attention with the naive one."""
    generator = torch.Generator().manual_seed(seed)
    ops = TorchOps(replace(tiny_shape(head_dim=DIM), sliding_window=window), BLOCK_SIZE, CPU)
    need = [-(-length // BLOCK_SIZE) for length in context_lens]
    blocks = torch.randperm(sum(need) + 3, generator=generator, dtype=torch.int32)
    tables = torch.full((len(need), max(need)), -1, dtype=torch.int32)
    for row, count in enumerate(need):
        tables[row, :count], blocks = blocks[:count], blocks[count:]
    kv = _pool(sum(need) + 3, kv_heads)
    k, v = ([torch.randn(n, kv_heads, DIM, generator=generator) for n in context_lens] for _ in range(2))

    def inputs(lens: list[int], contexts: list[int], rows: list[int]) -> BatchInputs:
        return BatchInputs(torch.tensor(lens).int(), torch.tensor(contexts).int(), tables[rows])

    old = [c - q for q, c in zip(query_lens, context_lens, strict=True)]
    if held := [i for i, n in enumerate(old) if n]:
        past = ops.plan(inputs([old[i] for i in held], [old[i] for i in held], held), heads, kv_heads)
        ops.write_kv(past, torch.cat([k[i][: old[i]] for i in held]), torch.cat([v[i][: old[i]] for i in held]), kv)
    plan = ops.plan(inputs(query_lens, context_lens, list(range(len(need)))), heads, kv_heads)
    new_k, new_v = (torch.cat([x[n:] for x, n in zip(whole, old, strict=True)]) for whole in (k, v))
    ops.write_kv(plan, new_k, new_v, kv)
    assert int((~kv.isnan()).sum()) == 2 * DIM * kv_heads * sum(context_lens)  # its own slots and no other

    before = kv.clone()
    q = torch.randn(sum(query_lens), heads, DIM, generator=generator)
    got = ops.attention(plan, q, kv)
    expected = torch.cat([_naive(*each, window) for each in zip(torch.split(q, query_lens), k, v, strict=True)])
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(kv, before, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(1, 12) | st.just(1), st.integers(0, 40)), min_size=1, max_size=8),
    kv_heads=st.sampled_from([1, 2, 3]),
    group=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 1000),
    window=st.none() | st.integers(1, 24),
)
def test_attention_equals_naive(
    chunks: list[tuple[int, int]], kv_heads: int, group: int, seed: int, window: int | None
) -> None:
    query_lens = [query for query, _ in chunks]
    _step(query_lens, [query + past for query, past in chunks], kv_heads * group, kv_heads, seed, window)


def test_blocks_before_a_window_are_not_read() -> None:
    """Of a context of ten blocks, a window of seven tokens lies in the last two or three."""
    ops = TorchOps(replace(tiny_shape(head_dim=DIM), sliding_window=7), BLOCK_SIZE, CPU)
    kv = torch.randn(10, 2, 2, BLOCK_SIZE, DIM, generator=torch.Generator().manual_seed(0))
    kv[:7] = torch.nan
    tables = torch.arange(10, dtype=torch.int32)[None]
    for queries in (1, 5):  # a decode and a chunk: the first of five attends to positions 29 to 35
        plan = ops.plan(BatchInputs(torch.tensor([queries]), torch.tensor([40]), tables), 4, 2)
        assert bool(ops.attention(plan, torch.ones(queries, 4, DIM), kv).isfinite().all())


def test_many_decodes_are_cut_into_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_ops, "_GROUP_TOKENS", 16)
    _step([1] * 9, [1, 3, 4, 5, 8, 9, 17, 31, 33], 4, 2, 0)


def test_a_foreign_kv_view_is_refused() -> None:
    ops = TorchOps(tiny_shape(head_dim=DIM), BLOCK_SIZE, CPU)
    batch = BatchInputs(torch.tensor([1]), torch.tensor([1]), torch.tensor([[0]]))
    kv = torch.zeros(4, BLOCK_SIZE, 2, 2, DIM).transpose(1, 3)
    with pytest.raises(ValueError, match="contiguous heads"):
        ops.attention(ops.plan(batch, 4, 2), torch.zeros(1, 4, DIM), kv)


def test_norms() -> None:
    ops = TorchOps(tiny_shape(), BLOCK_SIZE, CPU)
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(5, 64, generator=generator) for _ in range(2))
    weight = torch.rand(64, generator=generator)
    total = x + residual
    normed, kept = ops.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    torch.testing.assert_close(kept, total)
    torch.testing.assert_close(normed, torch.nn.functional.rms_norm(total, (64,), weight, 1e-5))
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), torch.nn.functional.rms_norm(x, (64,), weight, 1e-5))
