"""What a worker takes of its host, and how it ends when it cannot begin."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch

from seesaw.engine.worker import worker
from seesaw.engine.worker.worker import run_worker, share_cores


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


@pytest.mark.parametrize("engine_is_there", [True, False])
def test_a_worker_whose_engine_has_ended_says_nothing(
    engine_is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError("no such file or directory")

    def end(code: int) -> NoReturn:
        raise SystemExit(code)

    told: list[object] = []
    outbox = SimpleNamespace(fail=told.append, close=lambda: None)
    monkeypatch.setattr(worker, "follow_parent", lambda: None)
    monkeypatch.setattr(worker, "print_in_background", lambda: None)
    monkeypatch.setattr(worker, "drain", lambda: None)
    monkeypatch.setattr(worker, "Outbox", lambda *_: outbox)
    monkeypatch.setattr(worker, "Worker", fail)
    monkeypatch.setattr(os, "_exit", end)
    spec = SimpleNamespace(rank=0, reports_address="", run_dir=tmp_path / "run")
    if engine_is_there:
        spec.run_dir.mkdir()
    with pytest.raises(SystemExit) as ended:
        run_worker(spec)  # type: ignore[arg-type]
    assert ended.value.code == 1
    assert len(told) == engine_is_there and ("Traceback" in capsys.readouterr().err) == engine_is_there
