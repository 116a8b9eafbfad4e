"""What `scripts/serve` adds to its arguments: the default model and its settings, only where the user named none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import serve_default
from serve_default import complete

MODEL = Path("/cache/model")
NAMED = ["/cache/model", "--served-model-name", "SmolLM2-135M-Instruct"]
LAYOUTS = ["--prefill", "P2", "--decode", "T2"]
SMALL_STEPS = ["--max-num-batched-tokens", "512"]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: False)


@pytest.mark.parametrize(
    ("arguments", "added"),
    [
        ([], NAMED + LAYOUTS + SMALL_STEPS),
        (["--port", "9"], NAMED + LAYOUTS + SMALL_STEPS),
        (["--prefill", "T4"], NAMED + SMALL_STEPS),
        (["--tail=T2", "--device", "cuda"], NAMED),
        (["--served-model-name", "x", "--max-num-batched-tokens=64"], ["/cache/model", *LAYOUTS]),
        (["a/model", "--prefill", "P4"], []),
        (["--port", "8312", "a/model"], []),
        (["--port", "9", "--config", "x.json"], []),
        (["--executor", "simulated"], []),
        (["--prefil", "T4"], []),
    ],
)
def test_what_is_added(arguments: list[str], added: list[str]) -> None:
    assert complete(arguments, lambda: MODEL) == [*added, *arguments]


def test_a_gpu_takes_steps_of_the_usual_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: path == Path("/dev/nvidiactl"))
    assert complete([], lambda: MODEL) == NAMED + LAYOUTS
    assert complete(["--device", "cpu"], lambda: MODEL) == [*NAMED, *LAYOUTS, *SMALL_STEPS, "--device", "cpu"]


def test_it_becomes_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: became.append((path, arguments)))
    monkeypatch.setattr(sys, "argv", ["serve_default.py", "--port", "9", "a/model"])
    serve_default.main()
    seesaw = Path(sys.executable).with_name("seesaw")
    assert became == [(seesaw, [str(seesaw), "serve", "--port", "9", "a/model"])]
