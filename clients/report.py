"""`seesaw bench report`, also `python -m seesaw.clients.report`: one HTML page of results, self-contained, and its
plots as PNG files beside it. What the page looks like is `clients.page`'s.

Takes any mix of load-test results, offline-benchmark results and engine traces.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from seesaw.clients import page
from seesaw.clients.errors import ClientError
from seesaw.clients.results import Results, read_results, short_name
from seesaw.clients.trace import Timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
LOAD_TEST_COLUMNS = {
    "model_id": "model",
    "dataset_name": "data set",
    "request_rate": "rate (req/s)",
    "max_concurrency": "concurrency",
    "completed": "completed",
    "failed": "failed",
    "duration": "duration (s)",
    "request_throughput": "req/s",
    "output_throughput": "output tok/s",
    "total_token_throughput": "total tok/s",
    "request_goodput": "goodput (req/s)",
    "prefix_cache_hit_rate": "cached share of input",
    "mean_ttft_ms": "mean TTFT (ms)",
    "mean_tpot_ms": "mean TPOT (ms)",
    "mean_itl_ms": "mean ITL (ms)",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ClientError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None, prog: str = "python -m seesaw.clients.report") -> int:
    """Exit code 2 for what the user can fix."""
    parser = _Parser(prog=prog, description="Make one HTML page of results and traces, with its plots beside it.")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="JSON of a load test, offline or trace")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"))
    parser.add_argument("--title", default="Seesaw benchmark report")
    try:
        args = parser.parse_args(argv)
        results = read_results(args.results)
        write_report(results, args.output, args.title)
    except ClientError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{prog}: error: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"wrote {args.output}")
    return 0


def write_report(results: Results, path: Path, title: str) -> None:
    """Write the page, and each plot as `STEM-NAME.png` beside it. Raises ClientError if matplotlib is missing."""
    parts = []
    for name, heading, table, figure in _sections(results):
        path.with_name(f"{path.stem}-{name}.png").write_bytes(_png(figure))
        parts.append(page.section(heading, _svg(figure), table))
    path.write_text(page.page(title, parts), encoding="utf-8")


def _sections(results: Results) -> Iterator[tuple[str, str, str, Figure]]:
    """File name, heading, table and picture of each section."""
    try:
        from seesaw.clients import plots
    except ImportError:
        raise ClientError("the report needs matplotlib: install it with `pip install -e '.[report]'`") from None
    if results.load_tests:
        named = {_with_data_set(name, result): result for name, result in results.load_tests.items()}
        systems = {
            name: {
                "requests": result["request_throughput"],
                "input": result["total_token_throughput"] - result["output_throughput"],
                "output": result["output_throughput"],
            }
            for name, result in named.items()
        }
        figure = plots.throughput(systems, "Throughput under load")
        yield "throughput", "Load tests: throughput", _load_test_table(results.load_tests), figure
        yield "latency", "Load tests: latency", page.origins(named), plots.latency_percentiles(named)
    for number, run in enumerate(results.offline, 1):
        systems = {
            system["name"]: {
                "requests": system["requests_per_second"],
                "input": system["input_tokens_per_second"],
                "output": system["output_tokens_per_second"],
            }
            for system in run["systems"]
        }
        heading = f"Offline: {run['model'] or run['device']}, {run['workload']}"
        if run["device"] == "simulated":
            heading += ", simulated"
        below = _offline_table(run) + page.origins({str(run["workload"]): run})
        yield f"offline-{number}", heading, below, plots.throughput(systems, heading)
    for number, (name, timeline) in enumerate(results.timelines.items(), 1):
        heading = f"Timeline: {name}"
        yield (
            f"timeline-{number}",
            heading,
            _transition_table(timeline) + _idle_table(timeline),
            plots.timeline(timeline, heading),
        )


def _with_data_set(name: str, result: Mapping[str, Any]) -> str:
    return f"{name}, {result['dataset_name']}" if result.get("dataset_name") else name


def _load_test_table(load_tests: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [[name, *(_cell(result, key) for key in LOAD_TEST_COLUMNS)] for name, result in load_tests.items()]
    return page.table(["system", *LOAD_TEST_COLUMNS.values()], rows)


def _cell(result: Mapping[str, Any], key: str) -> Any:
    value = result.get(key)
    return short_name(str(value)) if key == "model_id" else value


def _offline_table(run: Mapping[str, Any]) -> str:
    """The first system is what the others are compared with."""
    first = run["systems"][0]["requests_per_second"]
    phases = list(dict.fromkeys(phase for system in run["systems"] for phase in system.get("phase_seconds", {})))
    rows = []
    for system in run["systems"]:
        transitions = system.get("transitions", 0)
        rows.append(
            [
                system["name"],
                system["total_s"],
                system["requests_per_second"],
                system["requests_per_second"] / first if first else None,
                system["input_tokens_per_second"],
                system["output_tokens_per_second"],
                *(system.get("phase_seconds", {}).get(phase) for phase in phases),
                sum(transitions.values()) if isinstance(transitions, dict) else transitions,
            ]
        )
    columns = ["system", "total (s)", "req/s", f"of {run['systems'][0]['name']}", "input tok/s", "output tok/s"]
    return page.table([*columns, *(f"{phase} (s)" for phase in phases), "transitions"], rows)


def _transition_table(timeline: Timeline) -> str:
    parts = list(dict.fromkeys(key for change in timeline.transitions for key in change.args if key.endswith("_s")))
    rows = [
        [f"{change.name} at {change.start_s:.3f} s", change.duration_s, *(change.args.get(part) for part in parts)]
        for change in timeline.transitions
    ]
    return page.table(["transition", "total (s)", *(f"{part[:-2]} (s)" for part in parts)], rows) if rows else ""


def _idle_table(timeline: Timeline) -> str:
    """Why replicas computed nothing while there was work; their seconds are added up."""
    by_cause: dict[str, list[float]] = {}
    for span in timeline.idle:
        by_cause.setdefault(span.name, []).append(span.duration_s)
    rows = [[cause, sum(seconds), len(seconds), max(seconds)] for cause, seconds in by_cause.items()]
    return page.table(["idle for", "total (s)", "times", "longest (s)"], rows) if rows else ""


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    return buffer.getvalue()


def _svg(figure: Figure) -> str:
    """Without a ground of its own, and in the page's ink."""
    from seesaw.clients.plots import INK

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", dpi=DPI, transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "var(--ink)")


if __name__ == "__main__":
    sys.exit(main())
