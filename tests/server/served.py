"""`seesaw serve` as a process, with a fake process for its engine: all else is real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
from soak_server import still_running

from tests.patience import PATIENCE_S, PAUSE_S

ROOT = Path(__file__).parents[2]


class Served:
    """A running `seesaw serve`, and what is left of it."""

    def __init__(self, process: subprocess.Popen[str], temp: Path) -> None:
        self.process = process
        self._temp = temp
        self.lines: list[str] = []

    @property
    def out(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def wait_for(self, text: str) -> str:
        for line in self.out:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError("".join(self.lines))

    def wait_ready(self) -> str:
        url = self.wait_for("Seesaw serves").split()[-1]
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        return url

    def end(self) -> tuple[int, str]:
        """Wait for the end; nothing may be left behind. Returns exit code and what was printed since."""
        rest = self.out.read()
        code = self.process.wait(PATIENCE_S)
        assert still_running(getattr(self, "children", []), PATIENCE_S) == {}
        assert list(self._temp.iterdir()) == []
        return code, rest


@contextmanager
def served(model: str, tmp_path: Path, *flags: str) -> Iterator[Served]:
    alone = ["--tokenizer=bytes", "--load-format=dummy"]  # asks no hub for the files of a model that is none
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.serve_fake", "serve", model, *alone, "--port=0", *flags],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Served(process, tmp_path)
    finally:
        process.kill()
        process.wait()


def complete(url: str, prompt: str) -> tuple[int, dict[str, object]]:
    return post(f"{url}/completions", {"prompt": prompt})


def post(url: str, body: dict[str, object]) -> tuple[int, dict[str, object]]:
    """Status and body of the answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def wait_for_first_tokens(url: str, count: int) -> None:
    """Until so many sequences have had their first token."""
    line = f"seesaw:time_to_first_token_seconds_count {count}.0"
    while True:
        with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=PATIENCE_S) as response:
            if line in response.read().decode():
                return
        time.sleep(PAUSE_S)
