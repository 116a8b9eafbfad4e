"""The process that measures what GPUs have free."""

from __future__ import annotations

import multiprocessing

import pytest
import torch

from seesaw.engine.executor.memory import free_device_bytes
from seesaw.engine.values.errors import EngineDeadError
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.processes


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has GPUs to measure")
def test_a_process_that_cannot_measure_is_an_error_and_leaves_nothing() -> None:
    with pytest.raises(EngineDeadError, match="could not be measured"):
        free_device_bytes(1, timeout_s=PATIENCE_S)
    assert not [child for child in multiprocessing.active_children() if child.name == "memory"]
