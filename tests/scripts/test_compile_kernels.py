"""What the compiler of kernels refuses, in one sentence each. It compiles nothing here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import SimpleNamespace

import compile_kernels
import pytest


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[int], list[bool]]]:
    """Backends, head dims and windows that the script asks for, with a stand-in for FlashInfer."""
    asked: list[tuple[list[str], list[int], list[bool]]] = []
    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "flashinfer.jit", SimpleNamespace(build_jit_specs=lambda modules, verbose: None))

    def specs(backends: list[str], head_dims: Sequence[int], windows: Sequence[bool]) -> list[object]:
        asked.append((backends, list(head_dims), list(windows)))
        return []

    monkeypatch.setattr(compile_kernels, "specs", specs)
    monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", "9.0a")
    return asked


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["compile_kernels", *arguments])
    compile_kernels.main()


def test_what_is_compiled(
    compiled: list[tuple[list[str], list[int], list[bool]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the rule that the operators choose by."""
    run(monkeypatch)
    run(monkeypatch, "--head-dims", "256", "--sliding-window")
    for architectures in ("8.9", "10.0a", "12.0f", "8.0 9.0"):
        monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", architectures)
        run(monkeypatch)
    both, fa2 = ["fa2", "fa3"], ["fa2"]
    assert compiled[:2] == [(both, [64, 128], [False]), (both, [256], [False, True])]
    assert [backends for backends, *_ in compiled[2:]] == [fa2, fa2, fa2, both]


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("architecture", "set FLASHINFER_CUDA_ARCH_LIST"),
        ("flashinfer", "needs FlashInfer"),
        ("head dim", "80"),
        ("7.5", "has compute capability 7.5, and half precision needs 8.0"),
        ("sm_90", "must be as in 8.9 or 9.0a, not sm_90"),
    ],
)
def test_what_is_missing_is_one_sentence(
    missing: str,
    says: str,
    compiled: list[tuple[list[str], list[int], list[bool]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if missing == "architecture":
        monkeypatch.delenv("FLASHINFER_CUDA_ARCH_LIST")
    if missing in ("7.5", "sm_90"):
        monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", missing)
    if missing == "flashinfer":
        monkeypatch.setitem(sys.modules, "flashinfer.jit", None)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *(["--head-dims", "80"] if missing == "head dim" else []))
    assert ended.value.code == 2 and says in capsys.readouterr().err.splitlines()[-1]
    assert not compiled
