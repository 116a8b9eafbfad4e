"""What a worker takes of its host."""

import os

import pytest
import torch

from seesaw.engine.worker.worker import share_cores


@pytest.mark.parametrize(
    ("device", "world_size", "said", "expected"),
    [("cpu", 2, None, 4), ("cpu", 16, None, 1), ("cpu", 2, "3", None), ("cuda", 2, None, 1), ("cuda", 2, "3", 1)],
)
def test_cores_are_shared_unless_somebody_said_how_many(
    device: str, world_size: int, said: str | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    share_cores(torch.device(device), world_size)
    assert given == ([] if expected is None else [expected])
