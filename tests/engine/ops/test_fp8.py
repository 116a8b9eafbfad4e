"""Rounding to 8 bits and back, in plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.engine.model.quantization import BLOCK
from seesaw.engine.ops.fp8 import LARGEST, Fp8Format, dequantized, quantize


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.sampled_from([None, 16, 32]), st.integers(0, 9), st.sampled_from([1e-6, 1.0, 1e4]))
def test_what_is_rounded_is_near(rows: int, group: int | None, seed: int, size: float) -> None:
    """Within half a step of e4m3, which has three bits behind the first; the largest of a scale is exact."""
    x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(seed)) * size
    got = quantize(x, Fp8Format(group))
    back = dequantized(got.data, got.scales)
    least = got.scales.max() * 2**-10  # half of the least number
    assert ((back - x).abs() <= x.abs() / 16 * 1.001 + least).all()
    grouped, rounded = (y.unflatten(1, (-1, group or 96)).abs().amax(-1) for y in (x, back))
    torch.testing.assert_close(rounded, grouped, rtol=1e-6, atol=0)


@pytest.mark.parametrize("group", [None, 16])
def test_zeros_and_the_largest_stay(group: int | None) -> None:
    x = torch.zeros(3, 32)
    x[1, 5], x[2] = 3e38, -3e38
    got = quantize(x, Fp8Format(group))
    assert got.data.float().abs().max() == LARGEST
    assert torch.equal(dequantized(got.data, got.scales)[0], x[0])
    assert dequantized(got.data, got.scales).isfinite().all()


def test_blocks_of_rows_share_scales() -> None:
    data = torch.randn(2 * BLOCK, 3 * BLOCK).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 3)
    by_row = scales.repeat_interleave(BLOCK, 0)
    assert torch.equal(dequantized(data, scales), dequantized(data, by_row))
    assert torch.equal(dequantized(data, scales)[BLOCK:, :BLOCK], data[BLOCK:, :BLOCK].float() * scales[1, 0])
