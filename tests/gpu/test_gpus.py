"""The GPUs, and what they have free, which `weights: auto` goes by: as a process that ends at once sees them."""

from __future__ import annotations

import pytest
import torch

from seesaw.engine.executor.gpus import found_gpus, free_device_bytes

pytestmark = pytest.mark.gpu


def test_number_of_gpus() -> None:
    assert found_gpus(timeout_s=60.0).count == torch.cuda.device_count()


def test_free_memory_of_every_gpu() -> None:
    free_bytes = free_device_bytes(torch.cuda.device_count(), timeout_s=60.0)
    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    assert all(0 < free <= size for free, size in zip(free_bytes, sizes, strict=True))
