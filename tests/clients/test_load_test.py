"""The command from flags to files, against a server of the test's own."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from seesaw.clients import arguments, load_test
from seesaw.clients.errors import ClientError
from seesaw.clients.figures import figures
from seesaw.clients.record import from_columns
from tests.clients.conftest import DONE, Site, event

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
    printed, hint = capsys.readouterr()
    assert "6 x HTTP 503: come back later" in printed and "--no-tokenize-prompt" not in hint


class Halves:
    """A tokenizer of two tokens a letter."""

    vocab_size, all_special_ids = 9, [0]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1] * (2 * len(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        return "x" * (len(token_ids) // 2)


@pytest.mark.anyio
async def test_a_server_that_takes_text_only_and_counts_nothing(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_test, "load_tokenizer", lambda name: Halves())
    site.takes_ids = False
    refused = await run(site, tmp_path / "ids")
    assert (refused["completed"], refused["mean_ttft_ms"], refused["output_tokens_counted_by"]) == (0, None, None)
    printed, hint = capsys.readouterr()
    assert "     6 x HTTP 500: 2 validation errors: {'msg': 'Input should" in printed
    assert "Mean TTFT (ms):                          -" in printed
    assert "--no-tokenize-prompt --tokenizer" in hint

    saved = await run(site, tmp_path / "text", "--no-tokenize-prompt")
    assert {body["prompt"] for body in site.bodies[6:]} == {"xx"}
    assert (saved["completed"], saved["total_input_tokens"]) == (6, 24)
    assert (saved["output_lens"], saved["output_tokens_counted_by"]) == ([6] * 6, "tokenizer")
    assert all(len(itls) == 2 for itls in saved["itls"])  # type: ignore[attr-defined]
    assert "counted by --tokenizer" in capsys.readouterr().out


@pytest.mark.anyio
async def test_tokens_that_nobody_counts_are_events(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.answer = [event("a"), event("b"), DONE.strip()]
    saved = await run(site, tmp_path)
    assert (saved["output_lens"], saved["output_tokens_counted_by"]) == ([2] * 6, "events")
    assert "an event counts as a token" in capsys.readouterr().out


@pytest.mark.anyio
async def test_chats(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_test, "load_tokenizer", lambda name: Halves())
    saved = await run(site, tmp_path, "--backend", "openai-chat", "--no-ignore-eos")
    assert site.bodies[0]["messages"] == [{"role": "user", "content": "xx"}]
    assert "ignore_eos" not in site.bodies[0]
    assert (saved["completed"], saved["total_input_tokens"], saved["total_output_tokens"]) == (6, 54, 18)
    assert (saved["backend"], saved["output_tokens_counted_by"]) == ("openai-chat", "usage")


@pytest.mark.anyio
async def test_a_result_that_cannot_be_written_is_found_before_the_run(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for flags in (
        ["--result-dir", str(tmp_path / "file")],
        ["--result-filename", "x" * 300],
        ["--result-filename", "."],
    ):
        with pytest.raises(ClientError, match="cannot write"):
            await run(site, tmp_path, *flags)
    assert site.bodies == [] and [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer", ["{}", "[]", '{"data": []}', '{"data": [{"id": 5}]}', '{"data": 1}', "[" * 100_000, "\udcff"]
)
async def test_a_list_of_models_that_is_none(site: Site, answer: str) -> None:
    site.models = answer.encode(errors="surrogateescape")
    with pytest.raises(ClientError, match="gives no model"):
        await load_test.run(arguments.parse(["--base-url", site.url], "x"))


def test_an_api_key_that_no_header_can_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments.parse(["--header", "X-A=b"], "x")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1\n")  # as out of a file
    assert load_test.request_headers(args) == {"Authorization": "Bearer sk-1", "X-A": "b"}
    monkeypatch.setenv("OPENAI_API_KEY", "sk\n1")
    with pytest.raises(ClientError, match="OPENAI_API_KEY"):
        load_test.request_headers(args)


class Gone(io.StringIO):
    """A pipe whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.anyio
async def test_a_run_whose_readers_are_gone_is_saved(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setattr(sys, "stdout", Gone())
    argv = [*SMALL[:-1], "--base-url", site.url, "--save-result", "--result-dir", str(tmp_path)]
    with pytest.raises(BrokenPipeError):  # as of any command
        await load_test.run(arguments.parse(argv, "x"))
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text())["completed"] == 6


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
        (["--request-rate", "0"], "must be a number from 1e-06"),
        (["--ramp-up-strategy", "linear"], "needs --ramp-up-start-rps"),
        (["--goodput", "ttft"], "KEY:MILLISECONDS"),
        (["--goodput", "itl:3"], "knows ttft"),
        (["--metadata", "x"], "KEY=VALUE"),
        (["--percentile-metrics", "x"], "is none of"),
        (["--nonsense"], "there is no flag --nonsense; see"),
        (["--num-prompt", "2"], "there is no flag --num-prompt: did you mean --num-prompts"),
        (["--dataset=random"], "no flag --dataset: did you mean --dataset-path or --dataset-name?"),
        (["--dataset-name", "prefix_repetition", "--num-prompts", "9"], "must be at most --num-prompts"),
        (["--dataset-name", "prefix_repetition", "--input-len", "9"], "no --input-len"),
        (["--dataset-name", "prefix_repetition", "--prefix-repetition-suffix-len", "0"], "a whole number from 1"),
        (["--self-timed"], "needs --dataset-name timed_trace"),
        (["--port", "1"], "start the server"),
    ],
)
def test_what_the_user_can_fix(flags: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_test.main(flags, "seesaw bench serve") == 2
    message = capsys.readouterr().err
    assert message.startswith("seesaw bench serve: error: ") and reason in message


@pytest.mark.parametrize(
    "flags",
    [
        *(
            [flag, value]
            for flag in ("--input-len", "--output-len", "--random-input-len", "--random-output-len", "--num-prompts")
            for value in ("0", "-1", "nan", "1.5", "1e9", "")
        ),
        *(
            [flag, value]
            for flag in ("--request-rate", "--burstiness", "--ramp-up-start-rps", "--ramp-up-end-rps")
            for value in ("0", "-1", "nan", "1e-300", "x")
        ),
        *(["--ramp-up-end-rps", "inf"], ["--sharegpt-output-len", "0"], ["--max-concurrency", "0"]),
        *(["--num-warmups", "-1"], ["--seed", "-1"], ["--port", "0"], ["--port", "65536"]),
        *(["--random-range-ratio", "1"], ["--random-range-ratio", "nan"], ["--ready-check-timeout-sec", "inf"]),
        *(["--temperature", "nan"], ["--top-p", "1.1"], ["--top-k", "2.5"], ["--min-p", "-0.1"]),
        *(["--metric-percentiles", "nan"], ["--metric-percentiles", "101"], ["--metric-percentiles", ""]),
        *(["--goodput", "ttft:nan"], ["--goodput", "ttft:-1"], ["--goodput", "ttft:inf"]),
        *(["--base-url", "localhost:8000"], ["--base-url", "http://"], ["--base-url", "http://a:b"], ["--host", ""]),
        *(["--endpoint", "v1/completions"], ["--header", "a b=c"], ["--header", "a=b\nc: d"]),
        *(
            ["--extra-body", "{"],
            ["--extra-body", "[]"],
            ["--extra-body", '{"a": NaN}'],
            ["--extra-body", "[" * 90_000],
        ),
        *(["--backend", "openai-chat", "--endpoint", "/v1/completions"], ["--endpoint", "/v1/chat/completions"]),
        *(["--backend", "openai-chat", "--tokenize-prompt"], ["--dataset-name", "sharegpt", "--tokenize-prompt"]),
    ],
)
def test_what_is_no_number_text_or_place_is_refused_in_a_sentence(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_test, "run", None)  # nothing is sent
    assert load_test.main(flags, "x") == 2
    message = capsys.readouterr().err
    assert message.startswith("x: error: ") and message.count("\n") == 1


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
