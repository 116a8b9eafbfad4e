"""Memory that runs out in spite of all arithmetic is one sentence; other errors stay what they are."""

from __future__ import annotations

import pytest
import torch

from seesaw.engine.device.out_of_memory import memory_errors
from seesaw.engine.kv.device_pool import DevicePool
from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.values.errors import ConfigError
from tests.tiny import CPU, tiny_shape


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'"),
        MemoryError(),
    ],
)
def test_a_failed_allocation_is_one_sentence(error: Exception) -> None:
    with pytest.raises(ConfigError, match=r"^cpu ran out of memory for weights: use more devices$"):
        with memory_errors("weights", CPU, "use more devices"):
            raise error


def test_a_pool_that_cannot_be_allocated() -> None:
    geometry = KVGeometry(tiny_shape(), Plan(Layout(), Layout()), block_size=4)
    with pytest.raises(ConfigError, match="cpu ran out of memory for KV: ask for less"):
        with memory_errors("KV", CPU, "ask for less"):
            DevicePool(geometry, 0, 1 << 44, CPU)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ConfigError("no tensor"), ValueError("memory")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        with memory_errors("weights", CPU, "use more devices"):
            raise error
