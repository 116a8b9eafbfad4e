"""What the compiler of kernels refuses, in one sentence each. It compiles nothing here."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import compile_kernels
import pytest
from compile_kernels import Wanted


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Wanted]:
    """What the script asks for, with a stand-in for FlashInfer."""
    asked: list[Wanted] = []
    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "flashinfer.jit", SimpleNamespace(build_jit_specs=lambda modules, verbose: None))

    def specs(wanted: Wanted) -> list[object]:
        asked.append(wanted)
        return []

    monkeypatch.setattr(compile_kernels, "specs", specs)
    monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", "9.0a")
    return asked


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["compile_kernels", *arguments])
    compile_kernels.main()


def test_what_is_compiled(compiled: list[Wanted], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rule that the operators choose by."""
    run(monkeypatch)
    run(monkeypatch, "--head-dims", "256", "--sliding-window", "--fp8-kv-groups", "4", "8", "--block-size", "32")
    for architectures in ("8.9", "10.0a", "12.0f", "8.0 9.0"):
        monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", architectures)
        run(monkeypatch)
    hopper = ("9.0a",)
    assert compiled[:2] == [
        Wanted(hopper, (64, 128), (False,), (), 16),
        Wanted(hopper, (256,), (False, True), (4, 8), 32),
    ]
    both, fa2 = ["fa2", "fa3"], ["fa2"]
    assert [wanted.backends() for wanted in compiled[1:]] == [both, fa2, fa2, fa2, both]
    assert compiled[1].backends(fp8_kv=True) == fa2
    assert [wanted.xqa for wanted in compiled[1:]] == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("architecture", "set FLASHINFER_CUDA_ARCH_LIST"),
        ("flashinfer", "needs FlashInfer"),
        ("head dim", "80"),
        ("7.5", "has compute capability 7.5, and half precision needs 8.0"),
        ("8.0", "a KV cache in fp8 needs compute capability 8.9"),
        ("sm_90", "must be as in 8.9 or 9.0a, not sm_90"),
    ],
)
def test_what_is_missing_is_one_sentence(
    missing: str,
    says: str,
    compiled: list[Wanted],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if missing == "architecture":
        monkeypatch.delenv("FLASHINFER_CUDA_ARCH_LIST")
    if missing in ("7.5", "8.0", "sm_90"):
        monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", missing)
    if missing == "flashinfer":
        monkeypatch.setitem(sys.modules, "flashinfer.jit", None)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *{"head dim": ["--head-dims", "80"], "8.0": ["--fp8-kv-groups", "4"]}.get(missing, []))
    assert ended.value.code == 2 and says in capsys.readouterr().err.splitlines()[-1]
    assert not compiled
