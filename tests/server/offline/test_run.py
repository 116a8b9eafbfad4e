"""The command from its files to its exit code."""

from __future__ import annotations

import codecs
import errno
import gzip
import json
import os
import threading
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from seesaw.server import cli
from seesaw.server.batches.committer import Committer
from seesaw.server.batches.job import Finished
from seesaw.server.batches.log import ResultLog
from seesaw.server.offline import run
from seesaw.server.offline.partial import Partial
from seesaw.server.offline.source import check_source
from tests.server.fake_engine import FakeProcess
from tests.server.offline.harness import FLAGS, FakeStart, batch_run, read, request, requests, write

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
MIXED = [
    request("a", "alpha"),
    {**request("b", ""), "url": "/v1/chat/completions", "body": CHAT},
    request("c", "alpha", url="/v1/embeddings"),
    request("d", "delta", max_tokens=-1),
    request("e", "echo", model="another"),
    request("f", "foxtrot", stream=True),
    request("g", "golf"),
]


def test_each_row_has_a_result_in_the_order_of_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write(tmp_path / "in.jsonl", MIXED), tmp_path / "out.jsonl"
    template = "--chat-template={% for m in messages %}{{ m.content }}{% endfor %}"
    flags = [template, "--served-model-name=tiny", "--max-queued-requests=4"]
    # A chat's answer is no completion's, so its text is looked at alone.
    assert batch_run(monkeypatch, source, output, *flags) == 0
    found = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert found[1]["response"]["body"]["choices"][0]["message"]["content"] == "hi"
    found[1]["response"]["body"]["choices"][0]["text"] = "hi"
    write(output, found)
    expected = [("a", "alpha"), ("b", "hi"), ("c", "invalid_url"), ("d", 400), ("e", 404), ("f", 400), ("g", "golf")]
    assert read(output) == expected
    assert "7 of 7 rows (4 failed)" in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]

    assert batch_run(monkeypatch, source, output, *flags) == 0  # nothing is left to do
    assert "has all 7 results already" in capsys.readouterr().err
    assert read(output) == expected
    write(source, MIXED[:5])
    assert batch_run(monkeypatch, source, output, *flags) == 2
    assert "out.jsonl is there already: remove it" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "level"), [((), "WARNING"), (("--log-level=info",), "INFO")])
def test_the_engine_tells_its_progress_only_if_asked(
    flags: tuple[str, ...], level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(config: Any, log_level: str) -> FakeProcess:
        levels.append(log_level)
        return FakeProcess(config)

    levels: list[str] = []
    monkeypatch.setattr(FakeStart, "start", start)
    source = write(tmp_path / "in.jsonl", requests(["a"]))
    assert batch_run(monkeypatch, source, tmp_path / "out.jsonl", *flags) == 0
    assert levels == [level]


def test_what_an_engine_that_dies_leaves_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write(tmp_path / "in.jsonl", requests(["a", "b", "c", "die", "d"])), tmp_path / "out.jsonl.gz"
    flags = ["--max-queued-requests=2", f"--output-tmp-dir={tmp_path / 'tmp'}"]  # a row at a time
    assert batch_run(monkeypatch, source, output, *flags) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("seesaw: error: the engine process ended without a word; stopped with 3 of 5 rows done")
    assert told.endswith("run the same command again to go on")
    assert not output.exists() and (tmp_path / "tmp" / "out.jsonl.gz.partial").is_dir()

    other = write(tmp_path / "other.jsonl", requests(["a"]))
    assert batch_run(monkeypatch, other, output, *flags) == 2
    assert "has results of another input" in capsys.readouterr().err
    assert batch_run(monkeypatch, source, output, *flags, "--model=slow") == 2
    assert "has results of another model" in capsys.readouterr().err


def test_where_only_the_output_is_missing_no_engine_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = write(tmp_path / "in.jsonl", requests(["a"])), tmp_path / "out.jsonl"
    checked = check_source(source, 10, 1000, threading.Event())
    line = b'{"custom_id":"row-0","response":null,"error":{"code":"c","message":"m"}}\n'
    with closing(Partial(tmp_path / "out.jsonl.partial", checked, "crash")) as kept:
        kept.keep([Finished(0, True, line, 1)])
    assert batch_run(monkeypatch, source, output, "--model=crash") == 0
    assert output.read_bytes() == line


def test_an_output_that_cannot_be_written_is_written_another_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source, output = write(tmp_path / "in.jsonl", requests(["a"])), tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        assert batch_run(monkeypatch, source, output) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith(
        "out.jsonl: No space left on device; stopped with 1 of 1 rows done: run the same command again to go on"
    )
    assert batch_run(monkeypatch, source, output) == 0
    assert read(output) == [("row-0", "a")]


def test_a_full_disk_is_a_sentence_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(log: ResultLog, lines: Sequence[bytes]) -> list[int]:
        monkeypatch.setattr(ResultLog, "append", append)
        raise OSError(errno.ENOSPC, "No space left on device")

    append = ResultLog.append
    monkeypatch.setattr(ResultLog, "append", full)
    monkeypatch.setattr(run, "Committer", partial(Committer, retry_s=0.001))
    source, output = write(tmp_path / "in.jsonl", requests(["a"])), tmp_path / "out.jsonl"
    assert batch_run(monkeypatch, source, output) == 0
    assert read(output) == [("row-0", "a")]
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "There is no room left in" in record.message and record.exc_info is None


def test_a_packed_file_is_as_a_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl.gz"
    with gzip.open(source, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in requests(["a", "b"]))
    assert batch_run(monkeypatch, source, output) == 0
    plain = tmp_path / "out.jsonl"
    plain.write_bytes(gzip.decompress(output.read_bytes()))
    assert read(plain) == [("row-0", "a"), ("row-1", "b")]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["-i", "in.jsonl"], "required: -o/--output-file"),
        (["-i", "none.jsonl", "-o", "out.jsonl"], "there is no file none.jsonl"),
        (["-i", "in.jsonl", "-o", "in.jsonl"], "in.jsonl is the input"),
        (["-i", "in.jsonl", "-o", "none/out.jsonl"], "there is no folder none"),
        (["-i", "in.jsonl", "-o", "link.jsonl"], "link.jsonl is the input"),
        (["-i", "-", "-o", "out.jsonl"], "- is no file, and would be read twice"),
        (["-i", "fifo", "-o", "out.jsonl"], "fifo is no file, and would be read twice"),
        (["-i", "in.jsonl", "-o", "-"], "- is no file: name a file with --output-file"),
        (["-i", "in.jsonl", "-o", "fifo"], "fifo is no file: name a file with --output-file"),
        (["-i", "in.jsonl", "-o", "."], "is no file: name a file with --output-file"),
        (["-i", "in.jsonl", "-o", "dangling"], "there is no folder"),
        (["-i", "in.jsonl", "-o", "x" * 250], "cannot be used: File name too long"),
        (["-i", "x" * 300, "-o", "out.jsonl"], "cannot be used: File name too long"),
        (["-i", "copy.jsonl", "-o", "in.jsonl"], "in.jsonl is there already"),
        (["-i", "mark.jsonl", "-o", "out.jsonl"], "mark.jsonl: The input file has no requests"),
        (
            ["-i", "in.jsonl", "-o", "out.jsonl"],
            "in.jsonl, line 2: This line is not parseable as valid JSON. (and 1 more)",
        ),
        (
            ["-i", "in.jsonl", "-o", "out.jsonl", "--max-batch-rows=1"],
            "in.jsonl: The input file has more than 1 requests",
        ),
        (["-i", "empty.jsonl", "-o", "out.jsonl"], "empty.jsonl: The input file has no requests"),
        (["-i", "in.jsonl", "-o", "out.jsonl", "--enable-metrics"], "no flag --enable-metrics: nothing is served here"),
        (["-i", "in.jsonl", "-o", "out.jsonl", "--port", "80"], "no flag --port: nothing is served here"),
        (["-i", "in.jsonl", "-o", "out.jsonl", "-tp", "4"], "as in `--prefill T4`"),
        (["-i", "in.jsonl", "-o", "out.jsonl", "--decode=T3", "--prefill=T2"], "one world size"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_exit_code_2(
    arguments: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "print_in_background", lambda: None)
    write(tmp_path / "in.jsonl", requests(["a"]))
    write(tmp_path / "copy.jsonl", requests(["a"]))
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "mark.jsonl").write_bytes(codecs.BOM_UTF8)
    os.mkfifo("fifo")
    os.link("in.jsonl", "link.jsonl")
    os.symlink("none/out.jsonl", "dangling")
    before = sorted(os.listdir())
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write("{\n{}\n")
    assert cli.main(["batch", "run", "echo", *FLAGS, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("seesaw: error: ") and part in line
    assert sorted(os.listdir()) == before


def test_a_link_leads_to_the_output_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output, other = write(tmp_path / "in.jsonl", requests(["a"])), tmp_path / "out.jsonl", tmp_path / "other"
    other.mkdir()
    output.symlink_to("other/results.jsonl")
    assert batch_run(monkeypatch, source, output) == 0
    assert output.is_symlink() and read(other / "results.jsonl") == [("row-0", "a")]
