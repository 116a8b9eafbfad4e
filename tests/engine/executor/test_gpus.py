"""The process that looks for GPUs and measures what they have free."""

from __future__ import annotations

import multiprocessing

import pytest
import torch

from seesaw.engine.device.choice import find_gpus
from seesaw.engine.executor.gpus import found_gpus, free_device_bytes
from seesaw.engine.values.errors import EngineDeadError
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.processes


def test_it_finds_what_torch_does() -> None:
    assert found_gpus(timeout_s=PATIENCE_S) == find_gpus()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has GPUs to measure")
def test_a_process_that_cannot_measure_is_an_error_and_leaves_nothing() -> None:
    with pytest.raises(EngineDeadError, match="could not be measured"):
        free_device_bytes(1, timeout_s=PATIENCE_S)
    assert not [child for child in multiprocessing.active_children() if child.name == "gpus"]
