"""The decoder against transformers in every layout, with ranks as threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.sampling.params import RowSampling
from seesaw.engine.weights.arena import rank_arena
from seesaw.engine.weights.loader import CheckpointSource
from seesaw.engine.weights.modes import ArenaWeights, ReloadWeights
from seesaw.engine.weights.placement import whole_bytes
from seesaw.engine.weights.store import WeightStore
from tests.tiny import CPU, LocalModel, layout_error, reference_greedy, reference_logits, write_tiny_checkpoint

TOKENS = torch.randint(0, 211, (37,), generator=torch.Generator().manual_seed(1)).tolist()
LAYOUTS = ["T1", "T2", "T4", "P2", "P4", "T2P2"]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tied": True},
    "two_kv_heads": {"kv_heads": 2},
    "one_kv_head": {"kv_heads": 1, "tied": True},
    "no_gqa": {"kv_heads": 8},
    "wide_heads": {"head_dim": 16},
    "llama3_rope": {"rope": LLAMA3},
    "linear_rope": {"rope": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}},
    "odd_layers": {"layers": 5},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("llamas")
    return {
        name: write_tiny_checkpoint(root / name, seed=seed, **options)
        for seed, (name, options) in enumerate(MODELS.items())
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_logits_equal_transformers(folders: dict[str, Path], model: str, layout: str) -> None:
    assert layout_error(folders[model], [Layout.parse(layout)], TOKENS) < 1e-4


def test_three_shards(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, layers=7, heads=12, kv_heads=6)
    assert layout_error(folder, [Layout.parse(text) for text in ("T3", "P3")], TOKENS) < 1e-4


@pytest.mark.parametrize("layout", ["T1", "T2P2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(tmp_path: Path, dtype: str, layout: str) -> None:
    """A prefill, its continuation and a decode."""
    local = LocalModel(write_tiny_checkpoint(tmp_path, dtype=dtype), Layout.parse(layout))
    cuts = [(0, 20), (20, 36), (36, 37)]
    got = torch.cat([local.forward([(start, TOKENS[start:stop])], [list(range(10))]) for start, stop in cuts])
    expected = reference_logits(tmp_path, TOKENS)
    torch.testing.assert_close(got, expected, atol=0.15 * float(expected.std()), rtol=0)


@pytest.mark.parametrize("model", ["plain", "two_kv_heads", "one_kv_head"])
@pytest.mark.parametrize(("layout", "other"), [("P4", "T4"), ("T2P2", "T4"), ("T2P2", "P4"), ("D2P2", "T4")])
def test_ranks_with_several_slices(folders: dict[str, Path], model: str, layout: str, other: str) -> None:
    """Weights are cut for the finer layout of a plan; the coarser one runs with slice-major outputs."""
    cut = Plan(Layout.parse(layout), Layout.parse(other))
    logits = LocalModel(folders[model], cut.prefill, plan=cut).logits(TOKENS)
    torch.testing.assert_close(logits, reference_logits(folders[model], TOKENS), atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", ["T2", "T4", "T8", "T2P2"])
def test_shards_sample_what_one_does(tmp_path: Path, layout: str) -> None:
    """A vocabulary of 9 on 8 shards has padding on several of them, and nothing else on the last."""
    folder = write_tiny_checkpoint(tmp_path, heads=8, kv_heads=8, vocab=9)
    hidden = torch.randn(12, 64, generator=torch.Generator().manual_seed(3))
    rows = [RowSampling(0.0 if seed % 3 == 0 else 1.5, 1.0, 0, 0.0, seed) for seed in range(12)]
    [alone] = LocalModel(folder, Layout()).sample(hidden, rows, list(range(12)))
    first, *others = LocalModel(folder, Layout.parse(layout)).sample(hidden, rows, list(range(12)))
    assert first is not None and alone is not None and first.tolist() == alone.tolist()
    assert others and all(tokens is None for tokens in others)


def test_logits_vary(folders: dict[str, Path]) -> None:
    """These models can tell right from wrong: another token, or a swapped layer, changes the logits a lot."""
    right = reference_logits(folders["plain"], TOKENS)
    other = reference_logits(folders["plain"], [(TOKENS[0] + 1) % 211, *TOKENS[1:]])
    assert (right[-1] - other[-1]).abs().max() > 0.05

    one = Layout()
    shape = LocalModel(folders["plain"], one).shape
    arena = rank_arena(shape, Plan(one, one), one, 0)

    def swapped(rank: int) -> Any:
        stage = ArenaWeights([arena], CheckpointSource(folders["plain"]), CPU).stage(0)
        stage.layers[1], stage.layers[2] = stage.layers[2], stage.layers[1]
        return stage

    wrong = LocalModel(folders["plain"], one, stage=swapped).logits(TOKENS)
    assert (right - wrong).abs().max() > 0.5


@pytest.mark.parametrize("layout", ["T1", "T4", "T2P2"])
@pytest.mark.parametrize("model", ["plain", "one_kv_head", "llama3_rope"])
def test_chunked_prefill_equals_whole(folders: dict[str, Path], model: str, layout: str) -> None:
    """Pieces of any length, over blocks scattered in a pool that is NaN wherever nothing was written."""
    local = LocalModel(folders[model], Layout.parse(layout), num_blocks=16)
    table = [11, 2, 15, 0, 7, 9, 4, 13, 1, 6]
    start, parts = 0, []
    for length in (1, 6, 13, 4, 1, 12):
        parts.append(local.forward([(start, TOKENS[start : start + length])], [table]))
        start += length
    assert start == len(TOKENS)
    torch.testing.assert_close(torch.cat(parts), reference_logits(folders[model], TOKENS), atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", ["T1", "T2P2"])
def test_mixed_batch(folders: dict[str, Path], layout: str) -> None:
    """Decodes of unlike lengths, a continued and a fresh prefill in one step do not disturb each other."""
    folder = folders["two_kv_heads"]
    local = LocalModel(folder, Layout.parse(layout), num_blocks=48)
    blocks = torch.randperm(48, generator=torch.Generator().manual_seed(0)).tolist()
    generator = torch.Generator().manual_seed(3)
    lengths = [1, 4, 5, 19, 33, 12, 8]  # tokens held before the step
    wanted = [1, 1, 1, 1, 1, 7, 3]
    prompts = [
        torch.randint(0, 211, (n + w,), generator=generator).tolist() for n, w in zip(lengths, wanted, strict=True)
    ]
    tables = []
    for prompt in prompts:
        need = local.geometry.blocks_for(len(prompt))
        tables.append(blocks[:need])
        blocks = blocks[need:]
    local.forward([(0, prompt[:n]) for prompt, n in zip(prompts, lengths, strict=True)], tables)
    fresh = TOKENS[:6]
    chunks = [(n, prompt[n:]) for prompt, n in zip(prompts, lengths, strict=True)] + [(0, fresh)]
    got = local.forward(chunks, [*tables, blocks[:2]])
    expected = [reference_logits(folder, prompt)[n:] for prompt, n in zip(prompts, lengths, strict=True)]
    torch.testing.assert_close(got, torch.cat([*expected, reference_logits(folder, fresh)]), atol=1e-4, rtol=0)


def test_greedy_decoding_from_reloaded_weights(folders: dict[str, Path]) -> None:
    """Token for token as transformers, with the weights of a plan's second layout in a poisoned arena."""
    folder, plan = folders["plain"], Plan(Layout(pp=2), Layout(tp=2))
    shape = LocalModel(folder, plan.prefill).shape
    store = WeightStore(shape, plan, torch.zeros(whole_bytes(shape, plan), dtype=torch.uint8))
    for rank in range(2):
        store.fill(CheckpointSource(folder), rank)
    weights = [ReloadWeights(store, rank, CPU, poison=True) for rank in range(2)]
    for each in weights:
        each.switch(0)
        each.switch(1)
    local = LocalModel(folder, plan.decode, plan=plan, stage=lambda rank: weights[rank].stage(1))
    table = list(range(16))
    tokens = [int(local.forward([(0, TOKENS)], [table])[-1].argmax())]
    while len(tokens) < 12:
        position = len(TOKENS) + len(tokens) - 1
        tokens.append(int(local.forward([(position, tokens[-1:])], [table])[-1].argmax()))
    expected, gaps = reference_greedy(folder, TOKENS, 12)
    assert min(gaps) > 20 * layout_error(folder, [plan.decode], TOKENS)  # so that rounding cannot decide
    assert tokens == expected


def test_rank_counts_match_the_kv_extents(folders: dict[str, Path]) -> None:
    for model in ("plain", "two_kv_heads", "one_kv_head", "no_gqa"):
        for text in LAYOUTS:
            local = LocalModel(folders[model], Layout.parse(text), plan=Plan(Layout.parse(text), Layout.parse(text)))
            for rank, extent in enumerate(local.geometry.extents(local.layout)):
                assert local.ranks[rank].num_kv_heads == len(extent.slices)
                assert local.ranks[rank].num_heads == local.shape.num_heads // local.layout.tp
