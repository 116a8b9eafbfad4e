"""The command `seesaw bench offline`, on the simulated host."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from seesaw.engine.bench.figures import RequestRecord, summarize
from seesaw.server import bench, cli

CONSTANT = ["--executor", "simulated", "--dataset", "constant", "--input-len", "200", "--output-len", "20"]


def run(*arguments: str) -> int:
    return cli.main(["bench", "offline", *CONSTANT, *arguments])


def test_a_config_against_static_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, output, trace = tmp_path / "config.json", tmp_path / "result.json", tmp_path / "trace.json"
    config.write_text(json.dumps({"prefill": "P2", "decode": "T2", "max_num_seqs": 8}))
    arguments = ["--num-requests", "30", "--against", "T2,P2", "--max-num-seqs", "16"]
    arguments += ["--policy", "paper", "--surge-min-tokens", "0"]
    assert run(str(config), *arguments, "--output-json", str(output), "--trace", str(trace)) == 0

    report = json.loads(output.read_text())
    assert (report["kind"], report["order"]) == ("seesaw-offline", "file")
    assert (report["device"], report["config"]["max_num_seqs"]) == ("simulated", 16)
    [workload] = report["workloads"]
    assert (workload["workload"], workload["num_requests"]) == ("30x200:20", 30)
    assert [system["name"] for system in workload["systems"]] == ["P2->T2", "T2", "P2"]
    printed = capsys.readouterr().out
    for system in workload["systems"]:
        figures = summarize([RequestRecord(**record) for record in system["requests"]])
        assert system["output_tokens_per_second"] == figures.output_tokens_per_second
        assert f"{len(system['requests'])} in {figures.total_s:.2f} s" in printed
    layouts = {e["args"]["layout"] for e in json.loads(trace.read_text())["traceEvents"] if e.get("cat") == "phase"}
    assert layouts == {"P2", "T2"}  # the static systems, which come later, are not traced


def test_several_workloads_beside_their_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths, limits, output = tmp_path / "lengths.csv", tmp_path / "limits.json", tmp_path / "result.json"
    lengths.write_text("prompt_len,output_len\n300,5\n20,9\n7,7\n")
    limits.write_text(json.dumps({"matmul_flops_per_s": 1e15, "memory_bytes_per_s": 1e12}))
    arguments = ["--executor", "simulated", "--shape", "configs/models/llama3-8b", "--against", "P2"]
    arguments += ["--prefill", "T2", "--workload", "4x100:20", "--workload", f"2x{lengths}"]
    arguments += ["--limits", str(limits), "--output-json", str(output)]
    assert cli.main(["bench", "offline", *arguments]) == 0
    printed = capsys.readouterr().out
    for load, requests in zip(json.loads(output.read_text())["workloads"], (4, 2), strict=True):
        assert [system["name"] for system in load["systems"]] == ["T2", "P2"]
        assert all(len(system["requests"]) == requests for system in load["systems"])
        assert all(system["floors"]["bound"]["total_s"] > 0 for system in load["systems"])
        assert printed.count(f"T2  {load['workload']}\n") == 1 and printed.count(f"\n{load['workload']}  devices") == 1
    assert printed.count("  bound  ") == 4


def test_prompts_that_begin_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "result.json"
    arguments = ["--executor", "simulated", "--output-json", str(output)]
    flags = ["--num-requests", "8", "--prefix-repetition-prefix-len", "60", "--prefix-repetition-num-prefixes", "2"]
    assert cli.main(["bench", "offline", *arguments, "--dataset", "prefix_repetition", *flags]) == 0
    [workload] = json.loads(output.read_text())["workloads"]
    assert workload["workload"] == "8x60+256:128@2"
    [system] = workload["systems"]
    assert [(r["prompt_tokens"], r["output_tokens"]) for r in system["requests"]] == [(316, 128)] * 8
    assert {"prefix_cache_queries", "prefix_cache_hits", "prefix_hit_rate"} <= system.keys()
    assert cli.main(["bench", "offline", *arguments, "--workload", "8x60+256:128@2"]) == 0
    assert json.loads(output.read_text())["workloads"][0]["workload"] == workload["workload"]


def test_sharegpt_by_its_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [("a" * n, "b" * (n // 2)) for n in range(20, 60)]
    data = tmp_path / "sharegpt.json"
    data.write_text(json.dumps([{"conversations": [{"value": p}, {"value": o}]} for p, o in turns]))
    output = tmp_path / "result.json"
    arguments = ["--executor", "simulated", "--tokenizer", "bytes", "--dataset-path", str(data), "--num-requests", "10"]
    arguments += ["--input-len", "40", "--output-len", "15", "--sort-prompts", "--output-json", str(output)]
    assert cli.main(["bench", "offline", *arguments, "--print-output"]) == 0
    report = json.loads(output.read_text())
    lengths = [(r["prompt_tokens"], r["output_tokens"]) for r in report["workloads"][0]["systems"][0]["requests"]]
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


def test_a_model_stands_alone_as_it_does_for_the_server(tmp_path: Path) -> None:
    args = bench._parse([str(tmp_path), "--dummy-weights", "--shape", "configs/models/llama2-7b"], "x")
    assert bench._config(args).model == str(tmp_path)
    assert bench._parse(["configs/llama2-7b-2xl4.json"], "x").model is None


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--num-requests", "0"], "--num-requests: must be a whole number of at least 1, not '0'"),
        (["--dataset", "csv"], "--dataset csv needs --dataset-path"),
        (["--dataset-path", "/none"], "--dataset constant reads no file: leave out --dataset-path"),
        (["--dataset", "csv", "--dataset-path", "/none"], "cannot read /none"),
        (["--dataset", "sharegpt", "--tokenizer", "bytes", "--dataset-path", "/none"], "cannot draw"),
        (["--dataset", "book"], "invalid choice: 'book'"),
        (["--against", "X3"], "layout 'X3'"),
        (["--against", "T4,T3", "--shape", "configs/models/llama3-8b"], "choose a T degree that divides 32"),
        (["--output-json", "/none/x.json"], "cannot write --output-json /none/x.json"),
        (["--input-len", "9000"], "does not fit the context"),
        (["--workload", "4x1:1"], "--workload says what to run: leave out --dataset"),
        (["--dataset", "prefix_repetition"], "leave out --dataset-path, --input-len, --output-len"),
        (["--prefix-repetition-suffix-len", "4"], "--prefix-repetition-suffix-len needs --dataset prefix_repetition"),
        (["--workload", "9x5+5:5@10"], "10 prefixes need as many requests"),
        (["--workload", "4"], "workload '4' is not understood"),
        (["--limits", "/none"], "cannot read /none"),
        (["--limits", "/none", "--executor", "processes"], "no model is named"),
        (["--limits", "/none", "--shape", "configs/models/llama3-8b"], "cannot read /none"),
        (["/none.json"], "cannot read the config file"),
        (["/none", "--executor", "processes"], "/none"),
        (["/none", "--model", "hub/name"], "the model is named twice: /none and --model hub/name"),
        (["--num-prompts", "3"], "no flag --num-prompts: use --num-requests"),
        (["--max-num-seq", "3"], "no flag --max-num-seq: did you mean --max-num-seqs?"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("seesaw: error: ") and part in line  # and nothing ran: no log line
