"""The CUDA operators against naive arithmetic, over pools like the engine's: strided, and larger than 2^32 elements."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from seesaw.engine.model.rope import inverse_frequencies, rotate
from seesaw.engine.model.shapes import RopeScaling
from seesaw.engine.ops.base import BatchInputs, GraphOps, make_ops
from seesaw.engine.ops.capability import attention_backends, capability_of
from seesaw.engine.ops.torch import TorchOps
from seesaw.engine.sampling.params import RowSampling
from seesaw.engine.sampling.sampler import sample
from seesaw.engine.values.config import AttentionBackend
from seesaw.engine.values.errors import ConfigError
from tests.tiny import tiny_shape

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)
HALVES = ("bfloat16", "float16")
BLOCK_SIZE = 16
FAR = 1 << 33  # bytes; the last blocks lie behind 2^32 elements


def _torch(dtype: str) -> torch.dtype:
    half: torch.dtype = getattr(torch, dtype)
    return half


def _relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.float() - expected.float()).norm() / expected.float().norm())


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The last `len(q)` positions over all of k and v, in float32."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
    scores = q.float().transpose(0, 1) @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    future = torch.ones(len(q), k.shape[1], dtype=torch.bool, device=q.device).triu(k.shape[1] - len(q) + 1)
    return (scores.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(0, 1).flatten(1)


@pytest.fixture(scope="module")
def pool() -> torch.Tensor:
    """`[blocks, layers, kv heads, 2, T, D]` in half precision; blocks of 8 MiB, the last ones far away."""
    blocks = FAR // (8 << 20) + 64
    return torch.empty(blocks, 128, 16, 2, BLOCK_SIZE, 64, dtype=torch.bfloat16, device=CUDA)


CASES = {
    "decode": [(1, 40), (1, 1), (1, 400), (1, 17)],
    "short prompts": [(40, 40), (7, 7), (100, 190)],
    "long prompts": [(700, 700), (600, 900)],
    "mixed": [(1, 33), (1, 200), (64, 100), (1, 5)],
    "mixed with a long prompt": [(1, 33), (1024, 1024)],
}


def _step(chunks: list[tuple[int, int]], num_blocks: int) -> BatchInputs:
    """A step of (query, context) lengths, over the last blocks of a pool."""
    need = [-(-context // BLOCK_SIZE) for _, context in chunks]
    ids = (num_blocks - 1 - torch.randperm(sum(need), dtype=torch.int32)).split(need)
    tables = torch.full((len(chunks), max(need)), -1, dtype=torch.int32)
    for row, mine in enumerate(ids):
        tables[row, : len(mine)] = mine
    query_lens, context_lens = (torch.tensor(lens, dtype=torch.int32) for lens in zip(*chunks, strict=True))
    return BatchInputs(query_lens, context_lens, tables)


@pytest.fixture(params=["auto", "fa2", "fa3"])
def backend(request: pytest.FixtureRequest) -> AttentionBackend:
    name: AttentionBackend = request.param
    if name != "auto" and name not in attention_backends(capability_of(CUDA)):
        pytest.skip(f"{name} is not for this GPU, or not on the portable path")
    return name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("heads", "kv_heads", "slices"), [(16, 16, 1), (16, 4, 1), (16, 4, 2), (32, 2, 1)])
@pytest.mark.parametrize(("dtype", "dim"), [("bfloat16", 64), ("bfloat16", 128), ("float16", 64)])
def test_attention_over_far_strided_blocks(
    pool: torch.Tensor,
    case: str,
    heads: int,
    kv_heads: int,
    slices: int,
    dtype: str,
    dim: int,
    backend: AttentionBackend,
) -> None:
    chunks = CASES[case]
    shape = tiny_shape(heads=heads, kv_heads=kv_heads, head_dim=dim, dtype=dtype, max_position=2048)
    ops = make_ops(CUDA, shape, BLOCK_SIZE, backend)
    layer = pool.view(_torch(dtype)).view(len(pool), -1)[:, 1 << 20 :][:, : kv_heads * 2 * BLOCK_SIZE * dim]
    kv = layer.unflatten(1, (kv_heads, 2, BLOCK_SIZE, dim))
    kv.fill_(torch.nan)
    generator = torch.Generator(CUDA).manual_seed(5)
    step = _step(chunks, len(pool))
    query_lens, context_lens = step.query_lens, step.context_lens

    def fused(tokens: int) -> list[torch.Tensor]:
        rows = (heads + 2 * kv_heads) // slices
        x = torch.randn(tokens, slices, rows, dim, generator=generator, device=CUDA).to(_torch(dtype))
        return list(x.split_with_sizes([heads // slices, kv_heads // slices, kv_heads // slices], dim=2))

    # All of each sequence first (in the order of chunks), then its last tokens again as the step.
    q, k, v = fused(int(context_lens.sum()))
    past = BatchInputs(context_lens, context_lens, step.tables)
    q = ops.rope_and_write(ops.plan(past, heads, kv_heads), q, k, v, kv)
    assert int((~kv.isnan()).sum()) == int(context_lens.sum()) * 2 * kv_heads * dim  # just its own slots

    _, positions = past.chunks_and_positions()
    angles = (positions[:, None].float() * inverse_frequencies(shape))[:, None].to(CUDA)
    k, v = rotate(k.flatten(1, 2), angles.cos(), angles.sin()), v.flatten(1, 2)
    ends = context_lens.cumsum(0).tolist()
    wanted = [slice(end - query, end) for end, query in zip(ends, query_lens.tolist(), strict=True)]
    plan = ops.plan(step, heads, kv_heads)
    got = ops.attention(plan, torch.cat([q[rows] for rows in wanted]), kv)
    spans = [slice(end - context, end) for end, context in zip(ends, context_lens.tolist(), strict=True)]
    expected = [_attend(q[rows], k[span], v[span]) for rows, span in zip(wanted, spans, strict=True)]
    assert _relative_error(got, torch.cat(expected)) < 1e-2


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("window", [1, 30, 100])
@pytest.mark.parametrize(("heads", "kv_heads"), [(16, 16), (28, 4)])  # decode not on tensor cores, and on them
def test_attention_in_a_sliding_window(
    case: str, window: int, heads: int, kv_heads: int, backend: AttentionBackend
) -> None:
    """As plain torch in float32: a token attends to itself and to the `window - 1` before it."""
    shape = tiny_shape(heads=heads, kv_heads=kv_heads, head_dim=64, dtype="bfloat16", max_position=2048)
    ops = make_ops(CUDA, replace(shape, sliding_window=window), BLOCK_SIZE, backend)
    step = _step(CASES[case], num_blocks=128)
    generator = torch.Generator(CUDA).manual_seed(5)
    kv = torch.randn(128, kv_heads, 2, BLOCK_SIZE, 64, generator=generator, device=CUDA).bfloat16()
    q = torch.randn(step.num_tokens, heads, 64, generator=generator, device=CUDA).bfloat16()
    got = ops.attention(ops.plan(step, heads, kv_heads), q, kv)

    def error(window: int) -> float:
        """Of the row that is farthest off: rows of a short context are larger than others."""
        exact = make_ops(CUDA, replace(shape, dtype="float32", sliding_window=window), BLOCK_SIZE)
        expected = exact.attention(exact.plan(step, heads, kv_heads), q.float(), kv.float())
        return float(((got.float() - expected).norm(dim=1) / expected.norm(dim=1)).max())

    assert error(window) < 1e-2
    if max(context for _, context in CASES[case]) > window:  # the next larger window is another one
        assert error(window + 1) > 2e-2


def test_the_portable_path_is_flash_attention_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_PORTABLE", "1")
    shape = tiny_shape(head_dim=64, dtype="bfloat16")
    ops = make_ops(CUDA, shape, BLOCK_SIZE)
    lens = torch.tensor([1024], dtype=torch.int32)
    plan = ops.plan(BatchInputs(lens, lens, torch.arange(64, dtype=torch.int32)[None]), 8, 4)
    assert plan.prefill._backend == "fa2"
    with pytest.raises(ConfigError, match=r"attention_backend fa3 needs compute capability 9\.0"):
        make_ops(CUDA, shape, BLOCK_SIZE, "fa3")


@pytest.mark.parametrize("kv_heads", [8, 16])  # on tensor cores, and not
@pytest.mark.parametrize("rows", [20, 40])  # an H100 runs 33 with 8 KV heads at once: fewer may be split
@pytest.mark.parametrize("window", [None, 20])
def test_a_graph_attends_as_its_latest_plan_says(rows: int, kv_heads: int, window: int | None) -> None:
    """Whatever FlashInfer's staging memory held before a plan."""
    heads, blocks = 32, 5
    shape = tiny_shape(heads=heads, kv_heads=kv_heads, head_dim=64, dtype="bfloat16")
    ops = make_ops(CUDA, replace(shape, sliding_window=window), BLOCK_SIZE)
    assert isinstance(ops, GraphOps)
    ones = torch.ones(rows, dtype=torch.int32)
    tables = torch.randperm(rows * blocks, dtype=torch.int32).view(rows, blocks)
    growing = torch.arange(rows, dtype=torch.int32)
    batches = [BatchInputs(ones, context_lens, tables) for context_lens in (ones, 1 + 2 * growing, rows - growing)]
    kv = torch.randn(rows * blocks, kv_heads, 2, BLOCK_SIZE, 64, device=CUDA).bfloat16()
    q = torch.randn(rows, heads, 64, device=CUDA).bfloat16()
    plan = ops.graph_plan(heads, kv_heads, torch.zeros(rows, blocks, dtype=torch.int32, device=CUDA))
    graph = torch.cuda.CUDAGraph()
    for batch in batches:
        torch.cuda.synchronize()
        plan.decode._wrapper._pin_memory_int_workspace_buffer.fill_(0xFF)
        ops.replan(plan, batch)
        if batch is batches[0]:
            ops.attention(plan, q, kv)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                got = ops.attention(plan, q, kv)
        graph.replay()
        assert _relative_error(got, ops.attention(ops.plan(batch, heads, kv_heads), q, kv)) < 1e-2


@pytest.mark.parametrize("backend", ["auto", "fa2"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (9, 3, 64), (16, 16, 64), (8, 1, 128)])
def test_decode_over_a_cache_in_8_bits(heads: int, kv_heads: int, dim: int, backend: AttentionBackend) -> None:
    """Eager and from a graph, over tables that are narrower than the graph's, too."""
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU of compute capability 8.9")
    rows, blocks = 37, 9
    shape = tiny_shape(heads=heads, kv_heads=kv_heads, head_dim=dim, dtype="bfloat16", max_position=2048)
    ops = make_ops(CUDA, replace(shape, kv_cache_dtype="float8_e4m3fn"), BLOCK_SIZE, backend)
    assert isinstance(ops, GraphOps)
    pool = torch.randn(rows * blocks, 2, kv_heads, 2, BLOCK_SIZE, dim, device=CUDA).to(torch.float8_e4m3fn)
    kv = pool[:, 1]
    q = torch.randn(rows, heads, dim, device=CUDA).bfloat16()
    ones = torch.ones(rows, dtype=torch.int32)
    tables = torch.randperm(rows * blocks, dtype=torch.int32).view(rows, blocks)
    plan = ops.graph_plan(heads, kv_heads, torch.zeros(rows, blocks, dtype=torch.int32, device=CUDA))
    graph = torch.cuda.CUDAGraph()
    exact = TorchOps(replace(shape, dtype="float32"), BLOCK_SIZE, CUDA)
    most = blocks * BLOCK_SIZE
    for lens in (ones, torch.randint(1, most + 1, (rows,)).int(), torch.full((rows,), most - BLOCK_SIZE - 3).int()):
        width = -(-int(lens.max()) // BLOCK_SIZE)
        batch = BatchInputs(ones, lens, tables[:, :width])
        ops.replan(plan, batch)
        if lens is ones:
            ops.attention(plan, q, kv)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                replayed = ops.attention(plan, q, kv)
        graph.replay()
        eager = ops.attention(ops.plan(batch, heads, kv_heads), q, kv)
        wanted = exact.attention(exact.plan(batch, heads, kv_heads), q.float(), kv.float())
        # Made for Hopper are kernels that round queries and probabilities to 8 bits, too.
        bound = 6e-2 if backend == "auto" and capability_of(CUDA)[0] == 9 else 1e-2
        assert _relative_error(eager, wanted) < bound
        assert _relative_error(replayed, wanted) < bound


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("heads", "kv_heads", "slices", "step"), [(8, 2, 1, 1), (8, 4, 2, 1), (8, 2, 4, 2)])
@pytest.mark.parametrize("rope", [RopeScaling(), RopeScaling("yarn", 4.0, attention_factor=1.2)])
def test_rope_is_the_reference_s(
    heads: int, kv_heads: int, slices: int, step: int, dtype: str, rope: RopeScaling
) -> None:
    """Also where several slices hold copies of one KV head, of which every `step`-th is kept."""
    shape = replace(tiny_shape(heads=heads, kv_heads=kv_heads, head_dim=64, dtype=dtype, max_position=8192), rope=rope)
    ops = make_ops(CUDA, shape, BLOCK_SIZE)
    positions = torch.tensor([0, 5, 8191], dtype=torch.int32)
    batch = BatchInputs(torch.ones(3, dtype=torch.int32), positions + 1, torch.zeros(3, 512, dtype=torch.int32))
    each = max(1, kv_heads // slices)
    fused = torch.randn(3, slices, heads // slices + 2 * each, 64, device=CUDA).to(_torch(dtype))
    q, k, v = fused.split_with_sizes([heads // slices, each, each], dim=2)
    k, v = k[:, ::step], v[:, ::step]
    kv = torch.empty(1, kv_heads, 2, BLOCK_SIZE, 64, dtype=_torch(dtype), device=CUDA)
    got = ops.rope_and_write(ops.plan(batch, heads, kv_heads), q, k, v, kv)
    angles = (positions[:, None].float() * inverse_frequencies(shape))[:, None].to(CUDA)
    cos, sin = angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor
    for row in range(3):
        where = slice(row, row + 1)
        expected = rotate(k[where].flatten(1, 2), cos[where], sin[where])
        torch.testing.assert_close(kv[0, :, 0, int(positions[row]) % BLOCK_SIZE][None], expected)
        torch.testing.assert_close(kv[0, :, 1, int(positions[row]) % BLOCK_SIZE][None], v[where].flatten(1, 2))
    torch.testing.assert_close(got, rotate(q.flatten(1, 2), cos, sin))


@pytest.mark.parametrize("dtype", HALVES)
def test_norms_and_activation(dtype: str) -> None:
    ops = make_ops(CUDA, tiny_shape(head_dim=64, dtype=dtype), BLOCK_SIZE)
    x, residual = (torch.randn(37, 1024, device=CUDA).to(_torch(dtype)) for _ in range(2))
    weight = torch.randn(1024, device=CUDA).to(_torch(dtype))

    def norm(wide: torch.Tensor) -> torch.Tensor:
        return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.float()

    assert _relative_error(ops.rms_norm(x, weight, 1e-5), norm(x.float())) < 5e-3
    total = x.float() + residual.float()
    normed, summed = ops.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    assert _relative_error(summed, total) < 5e-3 and _relative_error(normed, norm(total)) < 1e-2
    gate, up = x.float().chunk(2, -1)
    assert _relative_error(ops.silu_and_mul(x), torch.nn.functional.silu(gate) * up) < 5e-3


def _row(
    temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0, seed: int = 0
) -> RowSampling:
    return RowSampling(temperature, top_p, top_k, min_p, seed)


def test_greedy_takes_the_first_of_equals() -> None:
    ops = make_ops(CUDA, tiny_shape(head_dim=64, dtype="bfloat16"), BLOCK_SIZE)
    logits = torch.randn(5, 50_001, device=CUDA).bfloat16()
    logits[1, [7, 40_000]] = 9.0
    rows = [_row(0.0)] * 5
    expected = sample(logits.float().cpu(), rows, [0] * 5)
    assert ops.sample(logits, rows, [0] * 5).tolist() == expected.tolist()


def test_a_row_s_token_does_not_depend_on_the_batch() -> None:
    ops = make_ops(CUDA, tiny_shape(head_dim=64, dtype="bfloat16"), BLOCK_SIZE)
    logits = torch.randn(6, 9999, device=CUDA) * 2
    rows = [_row(0.0), _row(seed=3), _row(0.7, top_p=0.8, seed=4), _row(top_k=9, seed=5), _row(min_p=0.1), _row(2.0)]
    alone = [int(ops.sample(logits[i : i + 1], [rows[i]], [40 + i])) for i in range(6)]
    order = [4, 2, 0, 5, 1, 3, 2]
    together = ops.sample(logits[order], [rows[i] for i in order], [40 + i for i in order])
    assert together.tolist() == [alone[i] for i in order]


def test_the_best_of_all_parts_is_sampled() -> None:
    ops = make_ops(CUDA, tiny_shape(head_dim=64, dtype="bfloat16"), BLOCK_SIZE)
    logits = (torch.randn(40, 9999, device=CUDA) * 2).bfloat16()
    rows, positions = [_row(0.0 if i % 4 == 0 else 0.3 * i, seed=i) for i in range(40)], list(range(40))
    cuts = (0, 2500, 5000, 7500, 9999)
    parts = [ops.best(logits[:, a:b], rows, positions, a, 9999) for a, b in pairwise(cuts)]
    scores, ids = (torch.stack(column, dim=1) for column in zip(*parts, strict=True))
    winners = ids.gather(1, scores.argmax(1, keepdim=True))[:, 0]
    assert winners.tolist() == ops.sample(logits, rows, positions).tolist()


def test_draws_follow_the_softmax() -> None:
    ops = make_ops(CUDA, tiny_shape(head_dim=64, dtype="bfloat16"), BLOCK_SIZE)
    logits, count = torch.tensor([0.0, 1.0, 2.0, -1.0, 3.0], device=CUDA), 20_000
    rows = [_row(1.5, seed=seed) for seed in range(count // 100)] * 100
    drawn = ops.sample(logits.expand(count, 5), rows, [i // (count // 100) for i in range(count)])
    frequency = drawn.bincount(minlength=5) / count
    torch.testing.assert_close(frequency, (logits / 1.5).softmax(-1), atol=0.012, rtol=0)


def test_restrictions_are_the_reference_s() -> None:
    ops = make_ops(CUDA, tiny_shape(head_dim=64, dtype="bfloat16"), BLOCK_SIZE)
    logits = torch.randn(1, 1000, device=CUDA) * 3
    ranked = logits[0].sort(descending=True).indices.tolist()
    mass = logits[0].softmax(-1)[ranked].cumsum(0)
    nucleus = int((mass < 0.7).sum()) + 1
    likely = int((logits[0].softmax(-1) >= 0.05 * logits[0].softmax(-1).max()).sum())
    for row, allowed in ((_row(top_k=4), 4), (_row(top_p=0.7), nucleus), (_row(min_p=0.05), likely)):
        rows = [_row(row.temperature, row.top_p, row.top_k, row.min_p, seed) for seed in range(4000)]
        drawn = set(ops.sample(logits.expand(4000, 1000), rows, [1] * 4000).tolist())
        assert drawn <= set(ranked[:allowed]) and len(drawn) > allowed // 2
