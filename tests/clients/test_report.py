"""The report: files told apart by content, traces read up to a cut, and a page that needs nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from seesaw.clients import report
from seesaw.clients.errors import ClientError
from seesaw.clients.figures import figures
from seesaw.clients.page import STYLE
from seesaw.clients.results import Results, read_results
from seesaw.clients.trace import read_trace
from tests.clients.test_figures import FAILED, RECORDS


def span(cat: str, name: str, start_s: float, duration_s: float, **args: object) -> dict[str, Any]:
    times = {"ts": 5e6 + start_s * 1e6, "dur": duration_s * 1e6}
    return {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": 0, **times, "args": args}


EVENTS = [
    {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "engine"}},
    {"ph": "C", "name": "sequences", "pid": 0, "ts": 5e6, "args": {"running": 0, "waiting": 2, "hosted": 0}},
    span("step", "prefill", 0.0, 1.0, tokens=100, sequences=2, layout="P2"),
    span("swap", "swap out", 0.5, 0.5, bytes=1 << 20, blocks=4),
    span("phase", "prefill", 0.0, 1.0, layout="P2"),
    span("transition", "P2->T2", 1.0, 0.25, drain_s=0.2, evacuate_s=0.0, weights_s=0.05),
    span("idle", "weights", 1.0, 0.25),
    {"ph": "C", "name": "host_blocks", "pid": 0, "ts": 6e6, "args": {"used": 4}},
    {"ph": "C", "name": "device_blocks", "pid": 0, "ts": 6e6, "args": {"used": 1}},
    span("step", "decode", 1.25, 0.75, tokens=2, sequences=2, layout="T2"),
    span("phase", "decode", 1.25, 0.75, layout="T2"),
]
OFFLINE = {
    "kind": "seesaw-offline",
    "model": "some/model",
    "device": "cpu",
    "workloads": [
        {
            "workload": "2x50:2000",
            "num_requests": 2,
            "systems": [
                {
                    "name": name,
                    "total_s": 2.0,
                    "requests_per_second": rate,
                    "input_tokens_per_second": 50.0,
                    "output_tokens_per_second": 2000.0,
                    "phase_seconds": {"prefill": 1.0},
                    "transitions": transitions,
                }
                for name, rate, transitions in (("P2->T2", 2.0, {"P2->T2": 1}), ("T2", 1.0, {}))
            ],
        }
    ],
}


def test_a_simulated_run_says_so() -> None:
    pytest.importorskip("matplotlib")
    [run] = [OFFLINE | workload for workload in OFFLINE["workloads"]]  # type: ignore[attr-defined]
    for device, marked in (("cpu", False), ("simulated", True)):
        [(_, heading, _, _)] = report._sections(Results(offline=[run | {"device": device}]))
        assert ("simulated" in heading) is marked


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    described = {"label": "one", "model_id": "m", "request_rate": "inf", "max_concurrency": None}
    load_test = described | figures(RECORDS, 99.0, (50, 90, 99))
    contents = {"load.json": load_test, "offline.json": OFFLINE, "run.json": {"traceEvents": EVENTS}}
    for name, content in contents.items():
        (tmp_path / name).write_text(json.dumps(content))
    return [tmp_path / name for name in contents]


def test_files_are_told_apart(files: list[Path]) -> None:
    results = read_results([*files, files[0]])
    assert list(results.load_tests) == ["one", "one (2)"]
    assert [(run["model"], run["workload"]) for run in results.offline] == [("some/model", "2x50:2000")]
    assert list(results.timelines) == ["run"]


def test_load_tests_without_a_label_are_named_by_their_files(files: list[Path]) -> None:
    content = json.loads(files[0].read_text()) | {"label": None, "model_id": "org/m", "date": "20261122-180000"}
    paths = [files[0].with_name(f"{name}.json") for name in ("openai-4.0qps-m-20261122-180000", "mine")]
    for path in paths:
        path.write_text(json.dumps(content))
    assert list(read_results(paths).load_tests) == ["openai-4.0qps", "mine"]


def test_load_tests_name_their_data_set(files: list[Path]) -> None:
    pytest.importorskip("matplotlib")
    results = read_results([files[0], files[0]])
    results.load_tests["one"]["dataset_name"] = "sharegpt"  # other tools' results have no such key
    (_, _, table, bars), (_, _, _, latency) = report._sections(results)
    assert "<th>data set</th>" in table and "<td>one</td><td>m</td><td>sharegpt</td>" in table
    assert [label.get_text() for label in bars.axes[0].get_yticklabels()] == ["one, sharegpt", "one (2)"]
    assert [label.get_text() for label in latency.legends[0].texts] == ["one, sharegpt", "one (2)"]


def test_a_timeline(files: list[Path]) -> None:
    timeline = read_trace(files[2])
    assert [(p.name, p.start_s, p.end_s) for p in timeline.phases] == [("prefill", 0.0, 1.0), ("decode", 1.25, 2.0)]
    assert [(t.name, t.args["drain_s"]) for t in timeline.transitions] == [("P2->T2", 0.2)]
    assert [s.args["tokens"] for s in timeline.steps] == [100, 2]
    assert [s.args["bytes"] for s in timeline.swaps] == [1 << 20]
    assert timeline.counters["sequences"]["waiting"].values == [2.0]
    assert timeline.counters["host_blocks"]["used"].times_s == [1.0]
    assert timeline.duration_s == 2.0
    assert "<td>weights</td><td>0.25</td><td>1</td><td>0.25</td>" in report._idle_table(timeline)


def test_a_drain_is_painted_as_the_phase_that_it_ends(files: list[Path]) -> None:
    plots = pytest.importorskip("seesaw.clients.plots")
    run = read_trace(files[2])
    phases, *_, pools = plots.timeline(run, "x").axes
    bars = {(round(bar.get_x(), 3), round(bar.get_width(), 3)): bar.get_facecolor() for bar in phases.patches}
    blue, red = (plots.matplotlib.colors.to_rgb(color) for color in ("#4C78A8", plots.TRANSITION_COLOR))
    assert bars[1.0, 0.2] == (*blue, plots.DRAIN_ALPHA)  # the drain
    assert bars[1.2, 0.05][:3] == red  # what follows it
    assert [label.get_text() for label in phases.get_legend().texts][-2:] == [
        "paler: drain (0.2 s)",
        "rest of transitions (1: 0.05 s)",
    ]
    (crossing,) = pools.patches
    assert (round(crossing.get_x(), 3), round(crossing.get_width(), 3)) == (1.2, 0.05)


@pytest.mark.parametrize(("most_shapes", "is_picture"), [(1, False), (0, True)])
def test_many_shapes_are_painted_as_one_picture(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, most_shapes: int, is_picture: bool
) -> None:
    plots = pytest.importorskip("seesaw.clients.plots")
    monkeypatch.setattr(plots, "MOST_SHAPES", most_shapes)
    (_, _, _, figure) = next(report._sections(Results(timelines={"run": read_trace(files[2])})))
    assert ("<image" in report._svg(figure)) is is_picture


def test_a_trace_that_was_cut_off(files: list[Path]) -> None:
    text = files[2].read_text()
    files[2].write_text(text[: text.index('"decode"') + 4])
    timeline = read_trace(files[2])
    assert (len(timeline.steps), len(timeline.transitions)) == (1, 1)


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[1]",
        "nonsense",
        '{"traceEvents": []}',
        '{"kind": "seesaw-offline"}',
        '{"output_throughput": 1.0}',
        '{"output_throughput": "1", "request_throughput": 1, "total_token_throughput": 1}',
        '{"output_throughput": NaN, "request_throughput": 1, "total_token_throughput": 1}',
        '{"output_throughput": 1, "request_throughput": 1, "total_token_throughput": 1, "p99_ttft_ms": "x"}',
        f'{{"output_throughput": {10**400}, "request_throughput": 1, "total_token_throughput": 1}}',
        '{"output_throughput": 1, "request_throughput": 1, "total_token_throughput": 1, "label": "\\ud800"}',
        '{"a": ' * 100_000,
        '{"traceEvents": [{"ts": 1, "ph": "X", "name": "a", "cat": "swap"}]}',
        '{"traceEvents": [{"ts": 1, "ph": "X", "name": "a", "cat": "step", "args": ["tokens"]}]}',
        '{"traceEvents": [{"ts": 1, "ph": "X", "name": "a", "cat": "step", "args": {"tokens": "9"}}]}',
        '{"traceEvents": [{"ts": 1, "ph": "X", "name": "a", "cat": "phase", "args": "x"}]}',
        '{"traceEvents": [{"ts": "1"}]}',
        '{"traceEvents": [{"ts": 1}]}',
        '{"traceEvents": [{"ts": 1, "ph": "C", "name": "a", "args": {"b": []}}]}',
        '{"traceEvents": [{"ts": 1, "ph": "X", "name": "a"}, {x}, {"ts": 2}]}',
        '{"kind": "seesaw-offline", "workloads": 7}',
        '{"kind": "seesaw-offline", "workloads": []}',
        json.dumps(OFFLINE | {"workloads": [{"workload": "2x5:5", "systems": []}]}),
        json.dumps(OFFLINE | {"workloads": [{"workload": "2x5:5", "systems": [{"name": "P2"}]}]}),
        json.dumps(OFFLINE).replace("2000.0", '"fast"'),
        json.dumps(OFFLINE).replace('{"prefill": 1.0}', "[1]"),
        json.dumps(OFFLINE).replace('{"P2->T2": 1}', '{"P2->T2": []}'),
    ],
)
def test_what_is_no_result(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ClientError, match=r"x\.json"):
        read_results([path])
    assert report.main([str(path)], "seesaw bench report") == 2
    assert capsys.readouterr().err.startswith("seesaw bench report: error: ")


def test_each_result_says_where_it_comes_from(files: list[Path]) -> None:
    pytest.importorskip("matplotlib")
    made = {"command": "seesaw bench serve --label 'a <b>'", "version": "1.2", "host": "here"}
    files[0].write_text(json.dumps(json.loads(files[0].read_text()) | made))
    files[1].write_text(json.dumps(OFFLINE | made))
    _, (_, _, load, _), (_, _, offline, _) = report._sections(read_results(files[:2]))
    for name, below in (("one", load), ("2x50:2000", offline)):
        assert f"<dt>{name}</dt><dd><code>seesaw bench serve --label &#x27;a &lt;b&gt;&#x27;</code></dd>" in below
        assert "<dd>Seesaw 1.2</dd><dd>here</dd>" in below


def test_latencies_of_nothing_are_not_drawn(files: list[Path]) -> None:
    pytest.importorskip("matplotlib")
    files[0].write_text(json.dumps({"label": "none"} | figures([FAILED], 99.0, (50, 99))))
    (_, _, table, _), (_, _, _, latency) = report._sections(read_results(files[:1]))
    assert "<td>-</td>" in table
    assert [bar.get_height() for axes in latency.axes for bar in axes.patches] == []


def test_the_page(files: list[Path], tmp_path: Path) -> None:
    plots = pytest.importorskip("seesaw.clients.plots")
    page = tmp_path / "out.html"
    assert report.main([*map(str, files), "-o", str(page), "--title", "a < b"]) == 0
    text = page.read_text()
    names = ["throughput", "latency", "offline-1", "timeline-1"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(f"out-{name}.png" for name in names)
    assert text.count("<svg ") == text.count('role="img"') == len(names)
    loaded = re.findall(r"""(?:src|href)=["']?([^"'>]*)|url\(([^)]*)|(@import)|(fetch\()""", text)
    assert all(source.startswith(("#", "data:")) for found in loaded for source in found if source)  # nothing else
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids)) > len(names)
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', text)) <= set(ids)
    assert text.count(plots.INK) == STYLE.count(plots.INK) == 1  # pictures take the page's ink, dark or light
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert "a &lt; b" in text
    assert "<td>P2-&gt;T2 at 1.000 s</td><td>0.25</td><td>0.2</td>" in text
    assert "<td>T2</td><td>2</td><td>1</td><td>0.5</td>" in text  # half of the first system's rate


def test_a_label_may_cost_dollars(tmp_path: Path) -> None:
    workloads = [workload | {"workload": "$5_{$"} for workload in OFFLINE["workloads"]]
    (tmp_path / "x.json").write_text(json.dumps(OFFLINE | {"workloads": workloads}))
    assert report.main([str(tmp_path / "x.json"), "-o", str(tmp_path / "x.html")]) == 0
