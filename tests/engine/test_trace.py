"""The timeline agrees with the engine's own counters, and is a whole document at any time."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from seesaw import LLM, SamplingParams
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.trace import FLUSH_EVENTS, Trace
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.wire.messages import Stats

PLAN = Plan(Layout.parse("P2"), Layout.parse("T2"))


def read(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


def spans(events: list[dict[str, Any]], category: str) -> list[dict[str, Any]]:
    return [event for event in events if event.get("cat") == category]


def seconds(events: list[dict[str, Any]]) -> float:
    return sum(float(event["dur"]) for event in events) / 1e6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Stats]:
    """The trace and the counters of a run on a simulated host, with several transitions."""
    path = tmp_path_factory.mktemp("trace") / "run.json"
    options = {"prefill": "P2", "decode": "T2", "executor": "simulated", "trace": str(path)}
    options |= {
        "max_model_len": 1024,
        "num_host_blocks": 150,
        "num_device_blocks": 300,
        "policy": "paper",
        "surge_min_tokens": 0,
    }
    with LLM("", skip_tokenizer=True, **options) as llm:
        params = [SamplingParams(max_tokens=5 + i % 40, ignore_eos=True) for i in range(60)]
        llm.generate([[1 + i] * (100 + 10 * i) for i in range(60)], params)
        stats = llm.stats()
    return read(path), stats


def test_phases_and_transitions_tile_the_time(run: tuple[list[dict[str, Any]], Stats]) -> None:
    events, stats = run
    row = sorted(spans(events, "phase") + spans(events, "transition"), key=lambda event: event["ts"])
    assert len(row) > 4
    for before, after in pairwise(row):
        assert before["ts"] + before["dur"] == pytest.approx(after["ts"], abs=0.01)
    assert seconds(row) == pytest.approx(sum(stats.phase_seconds.values()), rel=1e-6)


def test_transitions_are_those_of_the_counters(run: tuple[list[dict[str, Any]], Stats]) -> None:
    events, stats = run
    transitions = spans(events, "transition")
    assert len(transitions) == sum(stats.transitions.values()) > 2
    assert {event["name"] for event in transitions} == {"P2->T2", "T2->P2"}
    for part in ("drain", "evacuate", "weights"):
        total = sum(event["args"][f"{part}_s"] for event in transitions)
        assert total == pytest.approx(stats.transition_seconds[part], abs=1e-4)
    assert seconds(transitions) == pytest.approx(sum(stats.transition_seconds.values()), abs=1e-4)


def test_steps_and_swaps_are_those_of_the_counters(run: tuple[list[dict[str, Any]], Stats]) -> None:
    events, stats = run
    steps, swaps = spans(events, "step"), spans(events, "swap")
    kinds = [event["name"] for event in steps]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == stats.steps
    assert {(e["name"], e["args"]["layout"]) for e in steps} == {("prefill", "P2"), ("decode", "T2")}
    assert sum(event["args"]["sequences"] for event in steps if event["name"] == "decode") == stats.decodes
    prefilled = sum(event["args"]["tokens"] for event in steps if event["name"] == "prefill")
    assert prefilled >= stats.prompt_tokens == sum(100 + 10 * i for i in range(60))
    for name, direction in (("swap out", "out"), ("swap in", "in")):
        moved = sum(event["args"]["bytes"] for event in swaps if event["name"] == name)
        assert moved == stats.swap_bytes[direction] > 0


def test_spans_of_a_row_do_not_overlap(run: tuple[list[dict[str, Any]], Stats]) -> None:
    rows: defaultdict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for event in run[0]:
        if event["ph"] == "X":
            assert event["dur"] >= 0
            rows[event["pid"], event["tid"]].append(event)
    for row in rows.values():
        row.sort(key=lambda event: event["ts"])
        for before, after in pairwise(row):
            assert before["ts"] + before["dur"] <= after["ts"] + 0.01
    named = {(e["pid"], e["tid"]) for e in run[0] if e["name"] == "thread_name"}
    assert set(rows) <= named


def test_counters_end_where_everything_is_free(run: tuple[list[dict[str, Any]], Stats]) -> None:
    events, stats = run
    counters = [event for event in events if event["ph"] == "C"]
    last = {event["name"]: event["args"] for event in counters}
    assert last == {
        "sequences": {"running": 0, "waiting": 0, "hosted": 0},
        "device_blocks": {"used": 0, "cached": stats.device_blocks_cached},
        "host_blocks": {"used": 0, "cached": stats.host_blocks_cached},
        "prefix_hits": {tier: stats.prefix_cache_hits.get(tier, 0) for tier in ("device", "host")},
    }
    assert max(event["args"]["used"] for event in counters if event["name"] == "host_blocks") > 100


def test_cached_blocks_and_hits_are_counters(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace.json", PLAN, 0.0)
    trace.sample(Stats(device_blocks_used=3, device_blocks_cached=4, host_blocks_cached=5), 1.0)
    trace.sample(Stats(device_blocks_used=3, device_blocks_cached=4, prefix_cache_hits={"host": 64}), 2.0)
    trace.close(3.0)
    counters = [(e["name"], e["args"]) for e in read(tmp_path / "trace.json") if e["ph"] == "C"]
    assert counters == [
        ("sequences", {"running": 0, "waiting": 0, "hosted": 0}),
        ("device_blocks", {"used": 3, "cached": 4}),
        ("host_blocks", {"used": 0, "cached": 5}),
        ("prefix_hits", {"device": 0, "host": 0}),
        ("host_blocks", {"used": 0, "cached": 0}),
        ("prefix_hits", {"device": 0, "host": 64}),
    ]


def test_the_file_is_whole_after_every_flush(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = Trace(path, PLAN, 10.0)
    trace.enter("prefill", PLAN.prefill, 10.0)
    trace.flush(11.0)
    assert [(e["name"], e["dur"]) for e in spans(read(path), "phase")] == [("prefill", 1e6)]
    trace.transition("P2->T2", 12.0, 12.5, drain_s=0.2, weights_s=0.3)
    trace.enter("decode", PLAN.decode, 12.5)
    trace.flush(13.0)
    assert [(e["name"], e["ts"], e["dur"]) for e in spans(read(path), "phase")] == [
        ("prefill", 0, 2e6),
        ("decode", 2.5e6, 0.5e6),
    ]
    for i in range(FLUSH_EVENTS + 10):  # nobody flushes, no time passes: memory is bounded all the same
        trace.step("decode", 0, 13.0, 0.0, 13.0, tokens=i)
    written = len(spans(read(path), "step"))
    assert 0 < written < FLUSH_EVENTS + 10
    trace.close(14.0)
    trace.close(15.0)
    events = read(path)
    assert [event["args"]["tokens"] for event in spans(events, "step")] == list(range(FLUSH_EVENTS + 10))
    assert spans(events, "phase")[-1]["dur"] == 1.5e6


def test_a_step_begins_when_its_ranks_could_begin_it(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = Trace(path, PLAN, 0.0)
    trace.step("decode", 0, sent_s=1.0, busy_s=0.0, now=2.0)  # not known how long it was busy: since it was sent
    trace.step("decode", 0, sent_s=1.0, busy_s=5.0, now=3.0)  # not before the one before it ended
    trace.step("decode", 0, sent_s=1.0, busy_s=0.5, now=9.0)  # the ranks idled before
    trace.close(9.0)
    assert [(e["ts"], e["dur"]) for e in spans(read(path), "step")] == [(1e6, 1e6), (2e6, 1e6), (8.5e6, 0.5e6)]


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "folder", Path("/dev/full")):
        with pytest.raises(ConfigError, match="choose another --trace"):
            LLM("", executor="simulated", skip_tokenizer=True, trace=str(path))


def test_a_full_disk_ends_the_trace_and_not_the_engine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trace = Trace(tmp_path / "trace.json", PLAN, 0.0)
    trace._file.close()
    trace._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115 (the trace closes it)
    for _ in range(3):
        trace.step("decode", 0, 0.0, 0.0, 0.0)
        trace.flush(0.0)
    assert [record.message for record in caplog.records] == ["the trace ends here: [Errno 28] No space left on device"]
