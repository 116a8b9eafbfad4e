"""What `scripts/serve` adds to its arguments: the default model and its settings, only where the user named none."""

from __future__ import annotations

import json
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
ON_CPU = ["--device", "cpu", *SMALL_STEPS]


@pytest.mark.parametrize(
    ("arguments", "added"),
    [
        ([], NAMED + LAYOUTS + ON_CPU),
        (["--port", "9"], NAMED + LAYOUTS + ON_CPU),
        (["--prefill", "T4"], NAMED + ON_CPU),
        (["--tail=T2", "--device", "cuda"], NAMED),
        (["--device", "cpu"], NAMED + LAYOUTS + SMALL_STEPS),
        (["--served-model-name", "x", "--max-num-batched-tokens=64"], ["/cache/model", *LAYOUTS, "--device", "cpu"]),
        (["a/model", "--prefill", "P4"], []),
        (["--port", "8312", "a/model"], []),
        (["--port", "9", "--config", "x.json"], []),
        (["--executor", "simulated"], []),
        (["--prefil", "T4"], []),
    ],
)
def test_what_is_added(arguments: list[str], added: list[str]) -> None:
    assert complete(arguments, lambda: MODEL) == [*added, *arguments]


@pytest.mark.parametrize(
    ("config", "flags", "added"),
    [
        ({"model": "a/model"}, [], []),
        ({"executor": "simulated"}, [], []),
        ({"max_num_seqs": 4}, [], NAMED + LAYOUTS + ON_CPU),
        ({"decode": "T4", "prefill": "P4", "device": "cuda"}, ["--port", "9"], NAMED),
        ({"served_model_name": "x", "max_num_batched_tokens": 64}, [], ["/cache/model", *LAYOUTS, "--device", "cpu"]),
        ({"unheard_of": 1}, [], []),
    ],
)
def test_what_is_added_to_a_config(
    config: dict[str, object], flags: list[str], added: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(config))
    arguments = ["--config", str(path), *flags]
    assert complete(arguments, lambda: MODEL) == [*added, *arguments]


def test_it_becomes_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: became.append((path, arguments)))
    monkeypatch.setattr(sys, "argv", ["serve_default.py", "--port", "9", "a/model"])
    serve_default.main()
    seesaw = Path(sys.executable).with_name("seesaw")
    assert became == [(seesaw, [str(seesaw), "serve", "--port", "9", "a/model"])]
