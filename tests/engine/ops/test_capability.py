"""Which kernels a GPU has: the one rule, for every GPU that the README names."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from seesaw.engine.ops.base import make_ops
from seesaw.engine.ops.capability import (
    Capability,
    attention_backends,
    capability_of,
    has_dependent_launch,
    parse_architecture,
)
from seesaw.engine.values.errors import ConfigError
from tests.tiny import tiny_shape

CUDA = torch.device("cuda", 0)
NAMED = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]


@pytest.mark.parametrize("capability", NAMED)
def test_every_gpu_that_is_named_has_a_backend(capability: Capability) -> None:
    hopper = capability == (9, 0)
    assert attention_backends(capability) == (("fa2", "fa3") if hopper else ("fa2",))
    assert attention_backends(capability, "fa2") == ("fa2",)
    if hopper:
        assert attention_backends(capability, "fa3") == ("fa3",)
    else:
        with pytest.raises(ConfigError, match=r"fa3 needs compute capability 9\.0 .* this GPU has \d+\.\d: use"):
            attention_backends(capability, "fa3")
    assert has_dependent_launch(capability) == (capability[0] >= 9)


def test_older_gpus_are_told_what_to_change() -> None:
    for old in ((7, 0), (7, 5)):
        with pytest.raises(
            ConfigError, match=r"compute capability 7\.\d, and half precision needs 8\.0 .*--dtype float32"
        ):
            attention_backends(old)


def test_architectures_are_capabilities() -> None:
    named = {"8.0": (8, 0), "8.9": (8, 9), "9.0a": (9, 0), "10.0a": (10, 0), "12.0f": (12, 0)}
    assert {text: parse_architecture(text) for text in named} == named
    for wrong in ("", "9", "sm_90", "9.0x"):
        with pytest.raises(ValueError):
            parse_architecture(wrong)


def test_the_portable_path_counts_newer_gpus_as_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEESAW_PORTABLE", raising=False)
    gpu = SimpleNamespace(capability=(9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: gpu.capability)
    assert capability_of(CUDA) == (9, 0)
    monkeypatch.setenv("SEESAW_PORTABLE", "1")
    assert capability_of(CUDA) == (8, 0)
    gpu.capability = (7, 5)
    assert capability_of(CUDA) == (7, 5)


def test_other_devices_have_no_backend_to_choose() -> None:
    cpu = torch.device("cpu")
    with pytest.raises(
        ConfigError, match="attention_backend fa2 is for GPUs in half precision, and this is float32 on cpu"
    ):
        make_ops(cpu, tiny_shape(), 4, "fa2")


def test_the_rule_needs_no_torch() -> None:
    program = "import sys, engine.ops.capability; sys.exit('torch' in sys.modules or 'flashinfer' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
