"""Which device is chosen, on hosts that this one is made to look like."""

from __future__ import annotations

import pytest
import torch

from seesaw.engine.device import choice
from seesaw.engine.device.choice import choose_device, why_no_gpu
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """With two GPUs and a CUDA build of torch. Tests take away from it."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(choice, "has_nvidia_device", lambda: True)
    return monkeypatch


def chosen(device: str, prefill: str = "P2") -> tuple[str, list[str]]:
    said: list[str] = []
    return choose_device(EngineConfig(prefill=prefill, device=device), said.append), said  # type: ignore[arg-type]


def test_auto_is_cuda_where_there_are_gpus(host: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert chosen("auto") == chosen("cuda") == ("cuda", [])
    assert chosen("cpu") == ("cpu", [])
    with pytest.raises(ConfigError, match="plan T4 needs 4 GPUs but this host has 2: choose smaller layouts"):
        chosen("auto", "T4")
    assert not caplog.records


def test_auto_is_the_cpu_where_there_are_none(host: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    host.setattr(torch.cuda, "device_count", lambda: 0)
    host.setattr(choice, "has_nvidia_device", lambda: False)
    assert chosen("auto") == ("cpu", ["this host has no GPU that torch can use: running on the CPU"])
    assert chosen("cpu") == ("cpu", [])
    assert not caplog.records


def test_gpus_that_torch_cannot_use_are_a_warning_and_for_cuda_an_error(
    host: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host.setattr(torch.cuda, "device_count", lambda: 0)
    assert "CUDA_VISIBLE_DEVICES" in why_no_gpu()
    host.setattr(torch.version, "cuda", None)
    assert chosen("auto") == ("cpu", [])
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "although this host has NVIDIA GPUs" in record.message and "remove .venv" in record.message
    with pytest.raises(ConfigError) as refused:
        chosen("cuda")
    assert str(refused.value).startswith(f"plan P2 needs 2 GPUs, and torch {torch.__version__} is a CPU build: ")
