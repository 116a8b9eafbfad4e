"""Which device is chosen, on hosts that this one is made to look like."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from seesaw.engine.device import choice
from seesaw.engine.device.choice import Gpus, choose_device, find_gpus
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError

TWO, NONE = Gpus(2, ""), Gpus(0, "torch finds none")


@pytest.fixture(autouse=True)
def nvidia_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "has_nvidia_device", lambda: True)


def chosen(device: str, gpus: Gpus, prefill: str = "P2") -> tuple[str, list[str]]:
    said: list[str] = []
    config = EngineConfig(prefill=prefill, device=device)  # type: ignore[arg-type]
    return choose_device(config, lambda: gpus, said.append), said


def test_auto_is_cuda_where_there_are_gpus(caplog: pytest.LogCaptureFixture) -> None:
    assert chosen("auto", TWO) == chosen("cuda", TWO) == ("cuda", [])
    assert chosen("cpu", TWO) == ("cpu", [])
    with pytest.raises(ConfigError, match="plan T4 needs 4 GPUs but this host has 2: choose smaller layouts"):
        chosen("auto", TWO, "T4")
    assert not caplog.records


def test_auto_is_the_cpu_where_there_are_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choice, "has_nvidia_device", lambda: False)
    assert chosen("auto", NONE) == ("cpu", ["this host has no GPU that torch can use: running on the CPU"])
    assert chosen("cpu", NONE) == ("cpu", [])
    assert not caplog.records


def test_gpus_that_torch_cannot_use_are_a_warning_and_for_cuda_an_error(caplog: pytest.LogCaptureFixture) -> None:
    assert chosen("auto", NONE) == ("cpu", [])
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "although this host has NVIDIA GPUs: torch finds none" in record.message
    with pytest.raises(ConfigError) as refused:
        chosen("cuda", NONE)
    assert str(refused.value) == "plan P2 needs 2 GPUs, and torch finds none, or choose --device cpu"


def test_what_torch_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert find_gpus().count == 2 and "CUDA_VISIBLE_DEVICES" in find_gpus().why_none
    monkeypatch.setattr(torch.version, "cuda", None)
    why = find_gpus().why_none
    assert why.startswith(f"torch {torch.__version__} is a CPU build: ") and "remove .venv" in why


def test_who_starts_workers_imports_no_torch() -> None:
    """The engine process: an import takes seconds, and some hundred megabytes."""
    script = "import sys, seesaw.engine.process, seesaw.engine.executor.processes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
