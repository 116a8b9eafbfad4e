"""What counts as a checkpoint, on this host or on the hub."""

from __future__ import annotations

import pickle
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from seesaw.engine.executor.processes import ProcessExecutor
from seesaw.engine.executor.ranks import Ranks
from seesaw.engine.model import checkpoint_files
from seesaw.engine.parallel.moves import Span
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.weights.checkpoint import resolve_checkpoint
from seesaw.engine.weights.loader import open_source
from seesaw.engine.worker.spec import WorkerSpec
from tests.tiny import write_tiny_checkpoint

FILE = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "model", layers=1, kv_heads=2)


def test_resolve_folder(folder: Path, tmp_path: Path) -> None:
    assert resolve_checkpoint(str(folder)).folder == folder
    (folder / FILE).unlink()
    assert resolve_checkpoint(str(folder), "dummy").folder == folder
    with pytest.raises(ConfigError, match="--load-format dummy"):
        resolve_checkpoint(str(folder))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve_checkpoint(str(tmp_path))
    with pytest.raises(ConfigError, match="there is no folder"):
        resolve_checkpoint(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no model given"):
        resolve_checkpoint("")


def test_resolve_hub_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert ignore_patterns == ["consolidated*"]
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_checkpoint("some/llama").folder == folder
    assert resolve_checkpoint("some/llama", "dummy").folder == folder
    assert [("*.safetensors" in patterns) for _, patterns in asked] == [True, False]
    assert all(name == "some/llama" and "*.json" in patterns for name, patterns in asked)


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline"), OSError("no route"), ValueError("bad name")])
def test_resolve_hub_failure(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(
        ConfigError, match=r"'some/llama' is no folder and its weights could not be fetched .*local folder"
    ):
        resolve_checkpoint("some/llama")


def test_files_are_looked_at_for_the_sizes_and_for_all_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many workers there are."""
    read: list[Path] = []
    read_header = checkpoint_files._read_header

    def start(_: Ranks, specs: list[WorkerSpec]) -> None:
        for spec in pickle.loads(pickle.dumps(specs)):
            source = open_source(spec.checkpoint, spec.shape, "safetensors", 0)
            assert len(source.read("model.norm.weight", (spec.shape.hidden,), Span(3, 5))) == 2
        raise ConfigError("enough")

    monkeypatch.setattr(checkpoint_files, "_read_header", lambda file: read.append(file) or read_header(file))
    monkeypatch.setattr(Ranks, "start", start)
    with pytest.raises(ConfigError, match="enough"):
        ProcessExecutor(EngineConfig(model=str(folder), device="cpu", prefill="D4"))
    assert read == [folder / FILE] * 2
