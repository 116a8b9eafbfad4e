"""Run every command and program that README.md and docs/*.md show, as written, as far as this machine can.

It runs them in a copy of the checkout, with the environment that runs this script, on port 8000. A server goes on until
the next one; commands that need one find it, or the default server. `path/to/...` is the default model. Exits with 1 if
one of them fails. It takes some minutes and is no test of CI's.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from doc_commands import ROOT, Command, commands
from fetch_default_model import default_model

PORT = 8000
READY_S, COMMAND_S, STOP_S, POLL_S = 300.0, 1800.0, 60.0, 0.2
SHOWN_LINES = 15  # of what a failed command printed

SERVERS = ("scripts/serve", "seesaw serve")
DEFAULT_SERVER = "scripts/serve"
NEEDS_SERVER = re.compile(r"\bcurl\b|bench serve|base_url=")


def no_gpu() -> bool:
    return shutil.which("nvidia-smi") is None


def no_docker() -> bool:
    return not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode != 0


def always() -> bool:
    return True


# What is not run here, when, and why.
LONG = re.compile(r"scripts/soak$|run_benchmark\.sh$|--num-prompts 500\b")
SKIPS: list[tuple[re.Pattern[str], Callable[[], bool], str]] = [
    (re.compile(r"scripts/(setup|check|test)\b"), always, "CI runs it"),
    (re.compile(r"docker "), no_docker, "there is no docker"),
    (re.compile(r"^(ray|serve) |--ray\b|,ray\]|//10\."), always, "it is for a cluster of Ray's"),
    (re.compile(r"70B|bench limits|--limits"), no_gpu, "it needs GPUs"),
    (re.compile(r"configs/llama(?!.*--executor simulated)", re.DOTALL), no_gpu, "its config is for a host with GPUs"),
]
# What a report is of, and what makes it where only commands that are skipped would have.
REPORT = "seesaw bench report"
_OFFLINE = "seesaw bench offline configs/llama2-7b-2xl4.json --executor simulated --dataset constant --num-requests 8 "
STAND_INS = {
    "load.json": "seesaw bench serve --num-prompts 2 --random-output-len 8 --save-result --result-filename load.json",
    "run.json": _OFFLINE + "--input-len 64 --output-len 8 --against T2 --trace run.json --output-json run-figures.json",
}


class Failure(Exception):
    """A command did not do what the document promises; the message is what it printed."""


class Workplace:
    """The copy of the checkout, and the server that runs in it, if any."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server: subprocess.Popen[str] | None = None
        self.next_server = DEFAULT_SERVER  # that is started when one is needed
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, files.split("\0")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
        (folder / ".venv").symlink_to(sys.prefix)
        # The environment is complete, and this script's; it was made for another folder.
        (folder / "scripts/setup").write_text("#!/bin/sh\n")
        (folder / ".curlrc").write_text("silent\nfail-with-body\n")  # an answer that is an error is one of curl's, too
        self._environment = {
            **os.environ,
            "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "PYTHONUNBUFFERED": "1",
            "CURL_HOME": str(folder),
        }

    def run(self, command: Command) -> None:
        """Raises Failure."""
        text = _filled(command)
        if command.is_one_of(*SERVERS):
            self.stop()
            self._start(text)
            return
        for needed, stand_in in STAND_INS.items() if command.is_one_of(REPORT) else ():
            if not (self.folder / needed).exists():
                self._run_to_the_end(["bash", "-c", stand_in])
        self._run_to_the_end(["bash" if command.language == "bash" else sys.executable, "-c", text])

    def stop(self) -> None:
        """End the server as an operator would. Raises Failure if it does not end well."""
        server, self._server, self.next_server = self._server, None, DEFAULT_SERVER
        if server is None:
            return
        os.killpg(server.pid, signal.SIGINT)
        try:
            printed, _ = server.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            raise Failure(f"the server still ran {STOP_S:.0f} s after Ctrl-C") from None
        if server.returncode != 0:
            raise Failure(f"the server ended with exit code {server.returncode}\n{printed}")

    def _start(self, text: str) -> None:
        server = self._server = self._spawn(["bash", "-c", f"exec {text}"])
        deadline = time.monotonic() + READY_S
        while not _is_healthy():
            if server.poll() is not None or time.monotonic() > deadline:
                self._server = None
                raise Failure(f"no server was ready\n{_last_words(server)}")
            time.sleep(POLL_S)

    def _run_to_the_end(self, argv: list[str]) -> None:
        if NEEDS_SERVER.search(argv[-1]) and self._server is None:
            self._start(self.next_server)
        process = self._spawn(argv)
        try:
            printed, _ = process.communicate(timeout=COMMAND_S)
        except subprocess.TimeoutExpired:
            raise Failure(f"it did not end within {COMMAND_S:.0f} s\n{_last_words(process)}") from None
        if process.returncode != 0:
            raise Failure(f"exit code {process.returncode}\n{printed}")

    def _spawn(self, argv: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            argv,
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a terminal's Ctrl-C reaches all of its processes
        )


def _filled(command: Command) -> str:
    return re.sub(r"path/to/[\w./-]+", str(default_model()), command.text)


def _last_words(process: subprocess.Popen[str]) -> str:
    """Kill it, and return what it had printed."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]


def _is_healthy() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=READY_S) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def why_not(command: Command, long: bool) -> str | None:
    """Why this command is not run here, if so."""
    if LONG.search(" ".join(command.words) if command.language == "bash" else "") and not long:
        return "it takes long: --long runs it"
    return next((why for pattern, holds, why in SKIPS if pattern.search(command.text) and holds()), None)


def check(only: str, long: bool) -> int:
    """Run those with this text in them and say what happened to each. Returns how many failed."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="docs-") as folder:
        workplace = Workplace(Path(folder))
        document = None
        for command in commands():
            try:
                if command.document != document:
                    document = command.document
                    workplace.stop()
                if only not in f"{command.where} {command.text}":
                    if command.is_one_of(*SERVERS) and not why_not(command, long):
                        workplace.stop()
                        workplace.next_server = _filled(command)
                    continue
                shown = f"{command.where}  {command.text.splitlines()[0][:100]}"
                if reason := why_not(command, long):
                    print(f"skipped        {shown}  ({reason})", flush=True)
                    continue
                begun = time.monotonic()
                workplace.run(command)
                print(f"ran {time.monotonic() - begun:8.1f} s {shown}", flush=True)
            except Failure as failure:
                failed += 1
                print(f"FAILED         {command.where}  {command.text}", flush=True)
                print(
                    "\n".join(str(failure).splitlines()[:1] + str(failure).splitlines()[1:][-SHOWN_LINES:]), flush=True
                )
        try:
            workplace.stop()
        except Failure as failure:
            failed += 1
            print(f"FAILED         the last server: {failure}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description="Run what README.md and docs/*.md show.")
    parser.add_argument("--long", action="store_true", help="also what takes many minutes")
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="commands with this text in them, or FILE:LINE; what others would have made is not there",
    )
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError as error:
            print(
                f"check_docs: error: port {PORT} is taken ({error.strerror}): end what listens there", file=sys.stderr
            )
            return 2
    failed = check(args.only, args.long)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
