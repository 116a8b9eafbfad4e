"""Numbers in 8 bits on a GPU are those of plain torch, and products of them as near as tensor cores add."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seesaw.engine.model.linear import Linear
from seesaw.engine.ops import fp8
from seesaw.engine.ops.fp8 import Fp8Format, Quantized
from seesaw.engine.ops.torch import TorchOps
from tests.tiny import tiny_shape

pytestmark = pytest.mark.gpu

EPS = 1e-5
FORMATS = [Fp8Format(), Fp8Format(128), Fp8Format(64), Fp8Format(32)]
ROWS = [1, 3, 64, 300]


@pytest.fixture(autouse=True)
def _needs_fp8() -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU of compute capability 8.9")


def rows_of(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Rows of unlike sizes, one of zeros."""
    x = torch.randn(rows, columns, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
    x *= torch.logspace(-3, 3, rows, device="cuda")[:, None]
    x[rows // 2] = 0
    return x.bfloat16()


def assert_same(got: Quantized, want: Quantized, share: float) -> None:
    """Equal, but for a few numbers that lay between two, by roundings of the arithmetic before."""
    torch.testing.assert_close(got.scales, want.scales, rtol=1e-2, atol=0)
    assert (got.data.view(torch.uint8) != want.data.view(torch.uint8)).float().mean() <= share
    away = fp8.dequantized(got.data, got.scales) - fp8.dequantized(want.data, want.scales)
    # At most one step of e4m3, which has three bits behind the first.
    assert (away.abs() <= fp8.dequantized(want.data, want.scales).abs() / 7 + want.scales.max() * 2**-6).all()


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("columns", [128, 4096, 28672, 384])
@pytest.mark.parametrize("rows", ROWS)
def test_rounding(rows: int, columns: int, format: Fp8Format) -> None:
    from seesaw.engine.ops import fp8_kernels

    x = rows_of(rows, columns)
    got, want = fp8_kernels.quantize(x, format), fp8.quantize(x, format)
    assert torch.equal(got.scales, want.scales)
    assert torch.equal(got.data.view(torch.uint8), want.data.view(torch.uint8))


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("columns", [4096, 384])
@pytest.mark.parametrize("rows", ROWS)
def test_norms(rows: int, columns: int, format: Fp8Format) -> None:
    from seesaw.engine.ops import fp8_kernels

    weight = torch.rand(columns, device="cuda").bfloat16()
    x, residual = rows_of(rows, columns, 1), rows_of(rows, columns, 2)
    for stream in (None, residual):
        total = x.float() if stream is None else x.float() + stream.float()
        normed = (total * torch.rsqrt(total.square().mean(-1, keepdim=True) + EPS) * weight.float()).bfloat16()
        after = None if stream is None else stream.clone()
        assert_same(fp8_kernels.add_norm(x, after, weight, EPS, format), fp8.quantize(normed, format), share=0.03)
        if after is not None:
            assert torch.equal(after, total.bfloat16())


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize(("slices", "ffn"), [(1, 14336), (2, 7168), (3, 128)])
@pytest.mark.parametrize("rows", ROWS)
def test_activations(rows: int, slices: int, ffn: int, format: Fp8Format) -> None:
    from seesaw.engine.ops import fp8_kernels

    x = rows_of(rows, slices * 2 * ffn).clamp(-50, 50).view(rows, slices, 2 * ffn)
    gate, up = x.float().chunk(2, dim=-1)
    want = fp8.quantize((F.silu(gate) * up).bfloat16().flatten(1), format)
    assert_same(fp8_kernels.silu_and_mul(x, format), want, share=0.03)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize(("columns", "inner"), [(6144, 4096), (4096, 14336), (112, 384)])
@pytest.mark.parametrize("rows", [1, 16, 40, 100, 130, 250, 1000])
def test_products(rows: int, columns: int, inner: int, format: Fp8Format, bias: bool) -> None:
    weight = fp8.quantize(torch.randn(columns, inner, device="cuda") / inner**0.5, format)
    scales = weight.scales[:, 0].contiguous() if format.group is None else weight.scales
    check_product(rows, weight.data, scales, format, bias)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("columns", "inner"), [(6144, 4096), (256, 384)])
@pytest.mark.parametrize("rows", [1, 16, 40, 130, 131, 1000])
def test_products_of_blocks(rows: int, columns: int, inner: int, bias: bool) -> None:
    scales = torch.rand(columns // 128, inner // 128, device="cuda") + 0.1
    data = (torch.randn(columns, inner, device="cuda") * 30).to(fp8.E4M3)
    check_product(rows, data, scales, Fp8Format(128), bias)


def check_product(rows: int, data: torch.Tensor, scales: torch.Tensor, format: Fp8Format, bias: bool) -> None:
    from seesaw.engine.ops import fp8_kernels

    columns, inner = data.shape
    x = fp8_kernels.quantize(torch.randn(rows, inner, device="cuda").bfloat16(), format)
    added = torch.randn(columns, device="cuda").bfloat16() if bias else None
    linear = Linear(data, added, scales, torch.bfloat16)
    assert linear.input_format == format
    exact = linear._plain(x)
    for out in (None, torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16)):
        got = linear.product(x, out)
        assert (got.float() - exact).norm() / exact.norm() < 5e-3
        assert out is None or got.data_ptr() == out.data_ptr()


def test_the_operators_round_alike() -> None:
    """What `FlashInferOps` fuses, `TorchOps` does one after another."""
    from seesaw.engine.ops.flashinfer import FlashInferOps

    shape = tiny_shape(head_dim=64, dtype="bfloat16")
    plain = TorchOps(shape, 16, torch.device("cuda"))
    fused = FlashInferOps(shape, 16, torch.device("cuda"), (9, 0))
    x, residual = rows_of(5, 512, 1).clamp(-9, 9), rows_of(5, 512, 2).clamp(-9, 9)
    weight = torch.rand(512, device="cuda").bfloat16()
    for format in FORMATS:
        results = [
            (
                ops.norm_for(x.clone(), weight, EPS, format),
                ops.add_norm_for(x.clone(), residual.clone(), weight, EPS, format)[0],
                ops.quantize(x, format),
            )
            for ops in (fused, plain)
        ]
        for got, want in zip(*results, strict=True):
            assert isinstance(got, Quantized) and isinstance(want, Quantized)
            assert_same(got, want, share=0.1)
