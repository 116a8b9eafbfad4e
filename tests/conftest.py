"""What all tests share: GPU tests are skipped where there is none, and the real model is built once.

Hypothesis draws the same examples in every run, and does not mind how long a loaded host takes over them.
"""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).parent.parent

settings.register_profile("seesaw", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("seesaw")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files that start servers take the longest: no worker is to begin one of them when the others have nothing left.
    items.sort(key=lambda item: "e2e" not in item.path.parts and item.get_closest_marker("model") is None)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    # All test modules and what they import: a full collection would walk them for most of a second.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def heap_stays_frozen() -> Iterator[None]:
    """Offline runs, whose clock is a virtual one in most tests, collect before they begin, and thaw the heap behind."""
    from seesaw.engine.bench import offline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "frozen_heap", nullcontext)
        yield


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in float32, heads padded to 12/4: its checkpoint folder, built on first use."""
    script = REPOSITORY / "scripts" / "fetch_default_model.py"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}  # an installed project is not needed
    with (tmp_path_factory.getbasetemp().parent / "smollm2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several workers, one builds
        result = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert result.returncode == 0, "the default model could not be built; the reason is on stderr"
    return Path(result.stdout.strip())
