"""The command from flags to files, against a server of the test's own."""

from __future__ import annotations

import ast
import asyncio
import json
import math
from pathlib import Path

import pytest

from clients import arguments, load_test
from clients.figures import figures
from clients.record import from_columns
from tests.clients.conftest import Site

REPOSITORY = Path(__file__).parent.parent.parent
SMALL = ["--num-prompts", "6", "--random-input-len", "4", "--random-output-len", "3", "--disable-tqdm"]


async def run(site: Site, folder: Path, *flags: str) -> dict[str, object]:
    argv = [*SMALL, "--base-url", site.url, "--save-result", "--save-detailed", "--result-dir", str(folder), *flags]
    await load_test.run(arguments.parse(argv, "x"))
    (path,) = folder.iterdir()
    saved = json.loads(path.read_text())
    assert isinstance(saved, dict)
    return saved


@pytest.mark.anyio
async def test_every_figure_is_recomputed_from_the_saved_record(site: Site, tmp_path: Path) -> None:
    saved = await run(
        site, tmp_path, "--goodput", "ttft:60000", "--metric-percentiles", "50,99.9", "--request-rate", "500"
    )
    again = figures(from_columns(saved), saved["start_time"], (50.0, 99.9), {"ttft": 60000.0})  # type: ignore[arg-type]
    assert {key: saved[key] for key in again} == again
    assert (saved["completed"], saved["failed"], saved["total_input_tokens"], saved["total_output_tokens"]) == (
        6,
        0,
        24,
        18,
    )
    assert saved["request_goodput"] == saved["request_throughput"]


@pytest.mark.anyio
async def test_the_file_is_as_the_fields(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--label", "mine", "--max-concurrency", "2", "--metadata", "gpu=none", "--num-warmups", "1"]
    saved = await run(site, tmp_path, *flags, "--temperature", "0", "--extra-body", '{"top_k": 1}')
    (path,) = tmp_path.iterdir()
    assert path.name == f"mine-infqps-concurrency2-fake-{saved['date']}.json"
    assert len(site.bodies) == 7
    assert site.most_running <= 2
    assert all(body["ignore_eos"] and (body["temperature"], body["top_k"]) == (0, 1) for body in site.bodies)
    expected = {
        *("date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate"),
        *("burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens"),
        *("total_output_tokens", "request_throughput", "request_goodput", "output_throughput"),
        *("total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests"),
        *("input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times"),
        *("generated_texts", "errors", "gpu"),
        *(f"{s}_{m}_ms" for s in ("mean", "median", "std", "p99") for m in ("ttft", "tpot", "itl", "e2el")),
    }
    assert expected <= saved.keys()
    assert (saved["model_id"], saved["request_rate"], saved["gpu"]) == ("org/fake", "inf", "none")
    printed = capsys.readouterr().out
    assert "Successful requests:                     6" in printed
    assert "Maximum request concurrency:             2" in printed
    assert "P99 ITL (ms):" in printed


@pytest.mark.anyio
async def test_prompts_that_begin_alike_and_what_was_cached_of_them(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.cached_tokens = 6
    flags = ["--prefix-repetition-prefix-len", "8", "--prefix-repetition-suffix-len", "4"]
    flags += ["--dataset-name", "prefix_repetition", "--prefix-repetition-num-prefixes", "2", "--output-len", "3"]
    saved = await run(site, tmp_path, *flags)
    assert len({tuple(body["prompt"][:8]) for body in site.bodies}) == 2
    assert {(len(body["prompt"]), body["max_tokens"], body["ignore_eos"]) for body in site.bodies} == {(12, 3, True)}
    assert (saved["total_cached_tokens"], saved["prefix_cache_hit_rate"]) == (36, 0.5)
    assert saved["cached_lens"] == [6] * 6
    assert "Prefix cache hit rate (%):               50.00" in capsys.readouterr().out


@pytest.mark.anyio
async def test_failed_requests_are_counted_with_their_reason(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.status = 503
    saved = await run(site, tmp_path)
    assert (saved["completed"], saved["failed"]) == (0, 6)
    assert saved["errors"] == ["HTTP 503: come back later"] * 6
    assert "6 x HTTP 503: come back later" in capsys.readouterr().out


@pytest.mark.anyio
async def test_an_interrupted_run_keeps_what_had_ended(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.most_answered = 2
    running = asyncio.create_task(run(site, tmp_path, "--max-concurrency", "1"))
    await site.held.wait()  # the third, so two have their answers
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    (path,) = tmp_path.iterdir()
    saved = json.loads(path.read_text())
    assert saved["interrupted"] and saved["num_prompts"] == 6
    assert (saved["completed"], saved["failed"], saved["output_lens"]) == (2, 0, [3, 3])
    printed = capsys.readouterr().out
    assert "Successful requests:                     2" in printed
    assert "requests without an end:    4" in printed


@pytest.mark.anyio
async def test_a_run_that_is_interrupted_before_it_began_has_no_result(site: Site, tmp_path: Path) -> None:
    site.most_answered = 0
    running = asyncio.create_task(run(site, tmp_path, "--num-warmups", "1"))
    await site.held.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--label", "P2->T2"], "P2-T2-infqps-m-1.json"),
        (["--label", "a/b *", "--request-rate", "1e20"], "a-b-1e+20qps-m-1.json"),
        (["--label", "P2->T2", "--result-filename", "as > given"], "as > given"),
    ],
)
def test_default_names_need_no_quotes(flags: list[str], name: str) -> None:
    assert load_test.result_path(arguments.parse(flags, "x"), "org/m", "1") == Path(name)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--dataset-name", "csv"], "needs --dataset-path"),
        (["--dataset-path", "x"], "takes no --dataset-path"),
        (["--request-rate", "0"], "must be positive"),
        (["--ramp-up-strategy", "linear"], "needs --ramp-up-start-rps"),
        (["--goodput", "ttft"], "KEY:MILLISECONDS"),
        (["--goodput", "itl:3"], "knows ttft"),
        (["--metadata", "x"], "KEY=VALUE"),
        (["--percentile-metrics", "x"], "is none of"),
        (["--nonsense"], "unrecognized arguments"),
        (["--dataset-name", "prefix_repetition", "--num-prompts", "9"], "must be at most --num-prompts"),
        (["--dataset-name", "prefix_repetition", "--input-len", "9"], "no --input-len"),
        (["--dataset-name", "prefix_repetition", "--prefix-repetition-suffix-len", "0"], "must be at least 1"),
        (["--self-timed"], "needs --dataset-name timed_trace"),
        (["--port", "1"], "start the server"),
    ],
)
def test_what_the_user_can_fix(flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_test.main(flags, "seesaw bench serve") == 2
    message = capsys.readouterr().err
    assert message.startswith("seesaw bench serve: error: ") and reason in message


def test_defaults_are_the_fields() -> None:
    args = arguments.parse([], "x")
    assert (args.num_prompts, args.request_rate, args.dataset_name, args.base_url) == (
        1000,
        math.inf,
        "random",
        "http://127.0.0.1:8000",
    )
    assert (args.percentile_metrics, args.metric_percentiles) == (["ttft", "tpot", "itl"], [99.0])
    assert (args.random_input_len, args.random_output_len, args.ignore_eos) == (1024, 128, True)
    assert (args.prefix_repetition_prefix_len, args.prefix_repetition_suffix_len) == (256, 256)
    assert (args.prefix_repetition_num_prefixes, args.prefix_repetition_output_len) == (10, 128)
    assert not arguments.parse(["--dataset-name", "sharegpt"], "x").ignore_eos


def test_clients_stand_apart() -> None:
    for path in (REPOSITORY / "clients").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"engine", "server", "scripts"}, path
