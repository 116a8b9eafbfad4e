"""Dummy weights: one model whatever the layout, and one whose activations stay finite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from seesaw.engine.model.config_json import read_shape
from seesaw.engine.model.quantization import Kind, Quantization
from seesaw.engine.model.stage import StageWeights
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.parallel.moves import Span
from seesaw.engine.weights.arena import rank_arena
from seesaw.engine.weights.dummy import DummySource
from seesaw.engine.weights.modes import ArenaWeights
from tests.families import MODELS
from tests.tiny import CPU, LocalModel, tiny_shape, write_tiny_checkpoint


def test_parts_are_of_one_tensor() -> None:
    source, again = DummySource(tiny_shape(), 3), DummySource(tiny_shape(), 3)
    whole = source.read("a", (96, 64), Span(0, 96))
    assert whole.shape == (96, 64)
    assert torch.equal(again.read("a", (96, 64), Span(10, 20)), whole[10:20])
    columns = source.read("b", (64, 96), Span(0, 96), dim=1)
    assert columns.shape == (64, 96)
    assert torch.equal(again.read("b", (64, 96), Span(10, 20), dim=1), columns[:, 10:20])


def test_seeds_and_names_differ() -> None:
    one, other = DummySource(tiny_shape(), 0), DummySource(tiny_shape(), 1)
    a, b, c = (
        one.read("a", (8, 64), Span(0, 8)),
        one.read("b", (8, 64), Span(0, 8)),
        other.read("a", (8, 64), Span(0, 8)),
    )
    assert not torch.equal(a, b) and not torch.equal(a, c)
    assert len({tuple(row.tolist()) for row in a}) == 8
    assert torch.equal(one.read("norm", (64,), Span(0, 64)), torch.ones(64))


@pytest.mark.parametrize(
    ("model", "dtype"), [("llama", "float32"), ("llama", "bfloat16"), *((name, "float32") for name in MODELS)]
)
def test_layouts_agree_and_stay_finite(tmp_path: Path, model: str, dtype: str) -> None:
    folder = write_tiny_checkpoint(tmp_path, kv_heads=2, dtype=dtype, **MODELS.get(model, {}))
    shape = read_shape(folder)
    source = DummySource(shape, 5)
    tokens = torch.randint(0, 211, (20,), generator=torch.Generator().manual_seed(0)).tolist()

    def logits(layout: Layout) -> torch.Tensor:
        def stage(rank: int) -> StageWeights:
            return ArenaWeights([rank_arena(shape, Plan(layout, layout), layout, rank)], source, CPU).stage(0)

        return LocalModel(folder, layout, stage=stage).logits(tokens)

    one = logits(Layout())
    assert one.isfinite().all()
    assert 0.3 < one.std() < 3
    error = 1e-4 if dtype == "float32" else 0.15
    for layout in (Layout(tp=4), Layout(pp=2, tp=2)):
        torch.testing.assert_close(logits(layout), one, atol=error, rtol=0)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_any_numbers(tmp_path: Path, kind: Kind) -> None:
    """As `--quantization fp8`, and as every checkpoint in 8 bits would be read."""
    folder = write_tiny_checkpoint(tmp_path, hidden=256, head_dim=32, ffn=1024)
    quantization = Quantization(kind, static=kind in ("tensor", "channel"))
    shape = replace(read_shape(folder), quantization=quantization)
    source = DummySource(shape, 5)

    def logits(layout: Layout) -> torch.Tensor:
        def stage(rank: int) -> StageWeights:
            return ArenaWeights([rank_arena(shape, Plan(layout, layout), layout, rank)], source, CPU).stage(0)

        changes = {"quantization": quantization}
        return LocalModel(folder, layout, stage=stage, changes=changes).logits(list(range(20)))

    one = logits(Layout())
    assert one.isfinite().all() and 0.3 < one.std() < 3
    torch.testing.assert_close(logits(Layout(pp=2, tp=2)), one, atol=0.6, rtol=0)
