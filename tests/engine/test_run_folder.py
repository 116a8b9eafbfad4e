"""Run folders: whose they are, and what becomes of those of the dead."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from seesaw.engine import run_folder
from seesaw.engine.run_folder import make_run_dir, remove_run_dir
from seesaw.engine.values.errors import ConfigError
from tests.patience import PATIENCE_S


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run_folder, "LONGEST_SOCKET_PATH", 1000)  # pytest's folders are deep
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_next_one_removes_what_the_dead_left_and_nothing_else(temp: Path) -> None:
    script = (
        "from engine import run_folder; run_folder.LONGEST_SOCKET_PATH = 1000; import tempfile, os, signal; "
        f"tempfile.tempdir = {str(temp)!r}; (run_folder.make_run_dir() / 'socket').touch(); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script], timeout=PATIENCE_S)
    [left] = temp.iterdir()
    (temp / "seesaw-of-somebody-else").mkdir()
    mine = make_run_dir()
    other = make_run_dir()
    assert not left.exists()
    assert {path.name for path in temp.iterdir()} == {mine.name, other.name, "seesaw-of-somebody-else"}
    assert mine.stat().st_mode & 0o777 == 0o700
    remove_run_dir(mine)
    remove_run_dir(mine)
    assert not mine.exists() and other.exists()
    remove_run_dir(other)


def test_no_room_is_one_sentence_and_leaves_nothing(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("os.write", write)
        with pytest.raises(ConfigError, match=r"\(No space left on device\): make room, or set TMPDIR"):
            make_run_dir()
    assert list(temp.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", str(temp / "nowhere"))
    with pytest.raises(ConfigError, match=r"\(No such file or directory\)"):
        make_run_dir()
