"""A system's figures follow from its record, and its phases and counters add up."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import pytest

from seesaw.engine.bench import offline
from seesaw.engine.bench.bounds import Host, run_floors
from seesaw.engine.bench.figures import RequestRecord, summarize
from seesaw.engine.bench.offline import SystemResult, run_workloads
from seesaw.engine.bench.tables import compare, describe
from seesaw.engine.bench.workload import Job
from seesaw.engine.cost.profile import HostProfile
from seesaw.engine.llm import LLM
from seesaw.engine.model.config_json import read_shape
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.wire.messages import Stats

CONFIG = EngineConfig(
    prefill="P4",
    decode="T4",
    executor="simulated",
    num_device_blocks=1024,
    num_host_blocks=1000,
    max_model_len=2048,
    policy="paper",
    surge_min_tokens=0,
)
JOBS = [Job(50 + 37 * i % 900, 4 + 11 * i % 60) for i in range(80)]


def run_system(config: EngineConfig, jobs: list[Job], *, hide_output_lengths: bool = False) -> SystemResult:
    [result] = run_workloads(config, [jobs], hide_output_lengths=hide_output_lengths)
    return result


@pytest.fixture(scope="module")
def result() -> SystemResult:
    return run_system(CONFIG, JOBS)


def test_every_request_gets_what_its_job_says(result: SystemResult) -> None:
    assert [(r.prompt_tokens, r.output_tokens) for r in result.requests] == [
        (job.prompt_tokens, job.output_tokens) for job in JOBS
    ]
    assert [len(tokens) for tokens in result.outputs] == [job.output_tokens for job in JOBS]
    assert all(0 < record.first_token_s <= record.finished_s for record in result.requests)


def test_the_saved_record_gives_the_saved_figures(result: SystemResult) -> None:
    saved = json.loads(json.dumps(result.to_json()))
    figures = asdict(summarize([RequestRecord(**record) for record in saved["requests"]]))
    assert figures == {key: saved[key] for key in figures}
    decoding_steps = saved["steps"]["decode"] + saved["steps"].get("mixed", 0)
    assert saved["mean_decode_batch"] == result.stats.decodes / decoding_steps


def test_phases_add_up_to_the_run(result: SystemResult) -> None:
    saved = result.to_json()
    assert sum(saved["phase_seconds"].values()) == pytest.approx(saved["total_s"])
    assert set(saved["phase_tokens"]) == {"prefill", "decode"}
    for kind, total in (
        ("prompt", sum(job.prompt_tokens for job in JOBS)),
        ("generation", sum(job.output_tokens for job in JOBS)),
    ):
        assert sum(tokens[kind] for tokens in saved["phase_tokens"].values()) == total
    assert saved["phase_tokens"]["prefill"]["prompt"] > 0
    assert sum(saved["transitions"].values()) >= 3
    assert sum(saved["transition_seconds"].values()) < saved["total_s"]
    assert saved["swap_bytes"]["in"] > 0
    assert 0 < saved["idle_seconds"]["weights"] <= sum(saved["idle_seconds"].values()) < saved["total_s"]
    assert "% of the run: " in describe(result)


def test_hidden_lengths_give_the_same_tokens_to_a_scheduler_that_cannot_know_them(result: SystemResult) -> None:
    hidden = run_system(CONFIG, JOBS, hide_output_lengths=True)
    assert hidden.outputs == result.outputs
    # It cannot leave out the step behind a sequence's last token.
    assert hidden.stats.decodes > result.stats.decodes
    one = [Job(40, 1)] * 10
    assert sum(run_system(CONFIG, one).stats.swap_bytes.values()) == 0
    assert run_system(CONFIG, one, hide_output_lengths=True).stats.generation_tokens == 10


def test_a_static_system_beside_it(result: SystemResult) -> None:
    static = run_system(replace(CONFIG, prefill="T4", decode=""), JOBS)
    assert static.outputs == result.outputs
    assert static.name == "T4" and not static.stats.transitions and static.info.host_blocks == 0
    head, *rows, note = compare([result, static]).splitlines()
    assert head.split()[:2] == ["system", "devices"] and [row.split()[0] for row in rows] == ["P4->T4", "T4"]
    ratio = result.figures.requests_per_second / static.figures.requests_per_second
    assert f"{ratio:.3f} x" in rows[1] and "1.000 x" in rows[0]
    assert "transitions" in describe(result) and "transitions" not in describe(static)
    assert "  prefill phase  " in describe(result) and "  prefill phase  " not in describe(static)
    assert "nothing was measured" in note and note in describe(static)


def test_a_second_workload_counts_only_its_own() -> None:
    config = replace(CONFIG, prefill="T4", decode="")
    first, other, again = run_workloads(config, [JOBS, [Job(9, 9)], JOBS])
    assert (other.stats.prompt_tokens, other.stats.generation_tokens, other.stats.decodes) == (9, 9, 8)
    for name, value in msgspec.structs.asdict(again.stats).items():  # gauges too: all is idle at the end
        assert value == (pytest.approx(getattr(first.stats, name)) if value else getattr(first.stats, name)), name
    assert again.figures.total_s == pytest.approx(first.figures.total_s)


def test_hits_are_of_the_run(result: SystemResult) -> None:
    stats = Stats(prefix_cache_queries=1000, prefix_cache_hits={"device": 500, "host": 120})
    before = Stats(prefix_cache_queries=200, prefix_cache_hits={"device": 100})
    since = offline._since(before, stats)
    assert (since.prefix_cache_queries, since.prefix_cache_hits) == (800, {"device": 400, "host": 120})
    found = replace(result, stats=msgspec.structs.replace(result.stats, **msgspec.structs.asdict(since)))
    saved = found.to_json()
    assert (saved["prefix_cache_queries"], saved["prefix_hit_rate"]) == (800, 0.65)
    assert saved["prefix_cache_hits"] == {"device": 400, "host": 120}
    assert "  prefix cache  65.0% of 800 prompt tokens were found: device 400, host 120" in describe(found)
    unasked = replace(result, stats=Stats())
    assert unasked.prefix_hit_rate == 0 and "prefix cache" not in describe(unasked)


def test_every_workload_begins_with_an_empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[int] = []
    monkeypatch.setattr(LLM, "reset_prefix_cache", lambda llm: resets.append(llm.stats().prompt_tokens))
    list(run_workloads(CONFIG, [[Job(30, 1)], [Job(40, 1)]]))
    assert resets == [0, 30]


def test_distances_from_the_floors() -> None:
    shape = read_shape(Path("configs/models/llama3-8b"))
    host = Host(shape, HostProfile(1e15, 1e12), max_num_seqs=256, max_num_batched_tokens=2048)
    config = replace(CONFIG, prefill="T4", decode="")
    [result] = run_workloads(config, [[Job(100, 50)] * 4], host=host)
    assert result.full_decode is not None and result.floors is not None
    assert result.full_decode.sequences == 4 and 100 < result.full_decode.mean_context_tokens < 150
    assert result.floors == run_floors(host, config.plan, [Job(100, 50)] * 4, result.full_decode)
    saved = json.loads(json.dumps(result.to_json()))
    assert saved["floors"]["full_decode_s"] == result.floors.full_decode_s
    text = describe(result, "4x100:50")
    assert text.startswith("T4  4x100:50\n")
    assert f"{result.full_decode.step_s / result.floors.full_decode_s:.2f} x" in text  # type: ignore[operator]
    assert f"{result.figures.total_s / result.floors.bound.total_s:.2f} x" in text


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (Job(2000, 100), "2000 + 100 tokens does not fit the context of 2048: raise --max-model-len, or ask for"),
        (Job(8000, 200), "8000 + 200 tokens does not fit the context of 8192: ask for shorter requests"),
    ],
)
def test_a_request_longer_than_the_context_is_refused(job: Job, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        run_system(CONFIG, [Job(10, 1), job])
    # Before anything is loaded, where the model is a folder.
    monkeypatch.setattr(offline, "LLM", None)
    with pytest.raises(ConfigError, match=re.escape(reason)):
        run_system(replace(CONFIG, shape="configs/models/llama3-8b"), [Job(10, 1), job])


def test_a_plan_that_ran_as_one_layout_says_so(result: SystemResult) -> None:
    few = JOBS[:4]
    waiting = sum(job.prompt_tokens for job in few)
    config = replace(CONFIG, surge_min_tokens=-1)
    unused, by_cost = run_system(config, few), run_system(replace(config, policy="cost"), few)
    assert "by measured times" in by_cost.never_used_prefill
    static = run_system(replace(config, prefill="T4", decode=""), few)
    note = f"no prompt was prefilled in P4: {waiting} tokens waited, and --surge-min-tokens"
    assert note in describe(unused) and compare([unused, static]).splitlines()[-1].startswith(f"P4->T4: {note}")
    for used in (result, static):
        assert not used.never_used_prefill and "no prompt was" not in describe(used) + compare([used, used])
