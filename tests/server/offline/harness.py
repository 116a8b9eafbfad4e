"""Files of rows, and `seesaw batch run` over a fake engine, which answers with the prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from seesaw.server import cli
from seesaw.server.offline import run
from tests.server.fake_engine import FakeProcess

URL = "/v1/completions"
FLAGS = ["--tokenizer=bytes", "--load-format=dummy"]  # asks no hub for the files of a model that is none


def request(custom_id: str, prompt: object, url: str = URL, **body: object) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"prompt": prompt, **body}}


def requests(prompts: Iterable[object]) -> list[dict[str, Any]]:
    return [request(f"row-{number}", prompt) for number, prompt in enumerate(prompts)]


def write(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def told(row: dict[str, Any]) -> tuple[str, Any]:
    """What does not depend on when it was asked: the text, or what went wrong."""
    if row["response"] is None:
        return row["custom_id"], row["error"]["code"]
    body, status = row["response"]["body"], row["response"]["status_code"]
    return row["custom_id"], body["choices"][0]["text"] if status == 200 else status


def read(path: Path) -> list[tuple[str, Any]]:
    return [told(json.loads(line)) for line in path.read_bytes().splitlines()]


class FakeStart:
    """In place of `engine.process.EngineProcess`."""

    @staticmethod
    def start(config: Any, log_level: str) -> FakeProcess:
        return FakeProcess(config)


def batch_run(monkeypatch: pytest.MonkeyPatch, source: Path, output: Path, *flags: str) -> int:
    """The command's exit code."""
    monkeypatch.setattr(run, "EngineProcess", FakeStart)
    monkeypatch.setattr(run, "print_in_background", lambda: None)  # this process has other tests to run
    return cli.main(["batch", "run", "echo", *FLAGS, "-i", str(source), "-o", str(output), *flags])


start_fake = partial(FakeStart.start, log_level="")
