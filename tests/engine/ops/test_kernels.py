"""Our Triton kernels compile for every GPU that the README names. That needs Triton, and no GPU."""

from __future__ import annotations

from typing import Any

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from seesaw.engine.model import peer_sums  # noqa: E402
from seesaw.engine.ops import kernels  # noqa: E402

CAPABILITIES = [80, 86, 89, 90, 100, 120]
LEAST_SHARED_BYTES = 99 << 10  # that a program may have: on 8.6, 8.9 and 12.0

HEADS = dict.fromkeys(("q", "k", "v", "out", "kv", "q_norm", "k_norm"), "*bf16")
TABLES = {"cos": "*fp32", "sin": "*fp32", "places": "*i32", "eps": "fp32"}
ROPE = (
    kernels._rope_and_write,
    HEADS | TABLES,
    {"q_norm": None, "k_norm": None, "HALF": 64, "HALF_BLOCK": 64, "HEADS_BLOCK": 64, "KV_HEADS_BLOCK": 8},
    8,
)
NORM_AND_ROPE = (
    kernels._rope_and_write,
    HEADS | TABLES,
    {"HALF": 64, "HALF_BLOCK": 64, "HEADS_BLOCK": 64, "KV_HEADS_BLOCK": 8},
    8,
)
DRAW = (
    kernels._draw,
    {"scores": "*bf16", "temperatures": "*fp32", "keys": "*i64", "tokens": "*i64", "best_scores": "*fp32"},
    {"BLOCK": kernels._SAMPLE_BLOCK},
    8,
)
POINTERS = {"part": "*bf16", "addresses": "*i64", "flag_addresses": "*i64", "waits": "*i32", "eps": "fp32"}
NOT_GIVEN = ("residual", "weight", "known", "data_addresses", "scale_addresses", "out", "out_scales")


def _without(*given: str) -> dict[str, None]:
    return {name: None for name in NOT_GIVEN if name not in given}


TWO_SHOTS = (
    peer_sums._reduce_rows,
    POINTERS | {"residual": "*bf16", "weight": "*bf16"},
    _without("residual", "weight") | {"SIZE": 8, "BLOCK": 8192},
    16,
)
ONE_SHOT = (
    peer_sums._reduce_rows,
    POINTERS | {"residual": "*bf16", "weight": "*bf16", "out": "*bf16"},
    _without("residual", "weight", "out") | {"SIZE": 4, "BLOCK": 8192},
    16,
)
TOTAL = (
    peer_sums._reduce_rows,
    POINTERS,
    _without() | {"SIZE": 2, "BLOCK": 1024},
    4,
)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    "kernel",
    [ROPE, NORM_AND_ROPE, DRAW, TWO_SHOTS, ONE_SHOT, TOTAL],
    ids=["rope", "norm-and-rope", "draw", "two-shots", "one-shot", "total"],
)
def test_it_compiles(kernel: tuple[Any, dict[str, str], dict[str, Any], int], capability: int) -> None:
    """What is no pointer and no constant is a 32-bit integer."""
    function, types, constants, num_warps = kernel
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in function.arg_names}
    source = ASTSource(function, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})
    assert compiled.asm["cubin"] and compiled.metadata.shared <= LEAST_SHARED_BYTES
