"""The command `seesaw bench offline`, on the simulated host."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engine.bench.figures import RequestRecord, summarize
from server import bench, cli

CONSTANT = ["--executor", "simulated", "--dataset", "constant", "--input-len", "200", "--output-len", "20"]


def run(*arguments: str) -> int:
    return cli.main(["bench", "offline", *CONSTANT, *arguments])


def test_a_config_against_static_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, output, trace = tmp_path / "config.json", tmp_path / "result.json", tmp_path / "trace.json"
    config.write_text(json.dumps({"prefill": "P2", "decode": "T2", "max_num_seqs": 8}))
    arguments = ["--num-requests", "30", "--against", "T2,P2", "--max-num-seqs", "16"]
    assert run(str(config), *arguments, "--output-json", str(output), "--trace", str(trace)) == 0

    report = json.loads(output.read_text())
    assert (report["kind"], report["num_requests"], report["order"]) == ("seesaw-offline", 30, "file")
    assert (report["device"], report["config"]["max_num_seqs"]) == ("simulated", 16)
    assert [system["name"] for system in report["systems"]] == ["P2->T2", "T2", "P2"]
    printed = capsys.readouterr().out
    for system in report["systems"]:
        figures = summarize([RequestRecord(**record) for record in system["requests"]])
        assert system["output_tokens_per_second"] == figures.output_tokens_per_second
        assert f"{len(system['requests'])} in {figures.total_s:.2f} s" in printed
    layouts = {e["args"]["layout"] for e in json.loads(trace.read_text())["traceEvents"] if e.get("cat") == "phase"}
    assert layouts == {"P2", "T2"}  # the static systems, which come later, are not traced


def test_sharegpt_by_its_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [("a" * n, "b" * (n // 2)) for n in range(20, 60)]
    data = tmp_path / "sharegpt.json"
    data.write_text(json.dumps([{"conversations": [{"value": p}, {"value": o}]} for p, o in turns]))
    output = tmp_path / "result.json"
    arguments = ["--executor", "simulated", "--tokenizer", "bytes", "--dataset-path", str(data), "--num-requests", "10"]
    arguments += ["--input-len", "40", "--output-len", "15", "--sort-prompts", "--output-json", str(output)]
    assert cli.main(["bench", "offline", *arguments, "--print-output"]) == 0
    report = json.loads(output.read_text())
    lengths = [(r["prompt_tokens"], r["output_tokens"]) for r in report["systems"][0]["requests"]]
    assert report["order"] == "longest-first" and lengths == sorted(lengths, reverse=True)
    assert all(output == min(prompt // 2, 15) and prompt <= 40 for prompt, output in lengths)
    assert "[9] '" in capsys.readouterr().out


def test_the_originals_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    args = bench._parser("x").parse_args(
        ["--dummy-weights", "--shape", "configs/models/llama2-7b", "--model", "hub/name"]
    )
    config = bench._config(args)
    assert (config.load_format, config.model, config.shape_source) == ("dummy", "hub/name", "configs/models/llama2-7b")
    monkeypatch.setenv("HF_TOKEN", "before")
    assert run("--num-requests", "1", "--hf-token", "secret") == 0
    assert os.environ["HF_TOKEN"] == "secret"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--num-requests", "0"], "--num-requests: must be a whole number of at least 1, not '0'"),
        (["--dataset", "csv"], "--dataset csv needs --dataset-path"),
        (["--dataset", "csv", "--dataset-path", "/none"], "cannot read /none"),
        (["--dataset", "sharegpt", "--tokenizer", "bytes", "--dataset-path", "/none"], "cannot draw"),
        (["--dataset", "book"], "invalid choice: 'book'"),
        (["--against", "X3"], "layout 'X3'"),
        (["--against", "T4,T3", "--shape", "configs/models/llama3-8b"], "choose a T degree that divides 32"),
        (["--output-json", "/none/x.json"], "cannot write --output-json /none/x.json"),
        (["--input-len", "9000"], "does not fit the context"),
        (["/none.json"], "cannot read the config file"),
        (["--max-num-seq", "3"], "unrecognized arguments"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("seesaw: error: ") and part in line  # and nothing ran: no log line
