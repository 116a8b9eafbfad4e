"""Result files of all kinds, told apart by their content. Called by `clients.report`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seesaw.clients.errors import ClientError
from seesaw.clients.trace import Timeline, is_trace, read_trace

OFFLINE_KIND = "seesaw-offline"
# What the report needs of a load test; of a workload, and of each of its systems.
_LOAD_TEST = ("request_throughput", "output_throughput", "total_token_throughput")
_RUN = {"model", "device", "workload", "systems"}
_SYSTEM = {"name", "total_s", "requests_per_second", "input_tokens_per_second", "output_tokens_per_second"}


@dataclass(frozen=True)
class Results:
    """What a report shows. Load tests and traces are by name; an offline benchmark is an entry for each workload."""

    load_tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    offline: list[dict[str, Any]] = field(default_factory=list)
    timelines: dict[str, Timeline] = field(default_factory=dict)


def read_results(paths: Sequence[Path]) -> Results:
    """Read files of the load test, of the offline benchmark and of `--trace`. Raises ClientError."""
    results = Results()
    for path in paths:
        try:
            if is_trace(path):
                results.timelines[path.stem] = read_trace(path)
                continue
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text, and fits no page
        except OSError as error:
            raise ClientError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ClientError(f"{path} is not a result or trace that can be read: {error}") from None
        if isinstance(content, dict) and content.get("kind") == OFFLINE_KIND:
            results.offline.extend(_workloads(content, path))
        elif isinstance(content, dict) and "output_throughput" in content:
            _check_load_test(content, path)
            results.load_tests[_unused(_name(content, path), results.load_tests)] = content
        else:
            raise ClientError(f"{path} is no result of a load test or offline benchmark, and no trace")
    return results


def short_name(model: str) -> str:
    """The last part of a model's path or hub name."""
    return model.rstrip("/").split("/")[-1]


def _name(content: dict[str, Any], path: Path) -> str:
    """A load test's label, or its file's name less the model and date that a default name ends with."""
    stem = path.stem.removesuffix(f"-{content.get('date')}")
    return str(content.get("label") or "") or stem.removesuffix(f"-{short_name(str(content.get('model_id')))}")


def _workloads(content: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """What an offline benchmark says of each of its workloads, and all of them together. Raises ClientError."""
    try:
        runs = [content | run for run in content["workloads"]]
        complete = runs and all(run.keys() >= _RUN and run["systems"] for run in runs)
        if complete and all(_is_system(system) for run in runs for system in run["systems"]):
            return runs
    except (AttributeError, KeyError, TypeError):
        pass
    raise ClientError(f"{path} is an offline benchmark without its figures: run `seesaw bench offline` again")


def _is_system(system: dict[str, Any]) -> bool:
    transitions = system.get("transitions", 0)
    figures = [system[key] for key in _SYSTEM - {"name"}] + list(system.get("phase_seconds", {}).values())
    figures += transitions.values() if isinstance(transitions, dict) else [transitions]
    return isinstance(system["name"], str) and all(map(_is_number, figures))


def _check_load_test(content: dict[str, Any], path: Path) -> None:
    """Raise ClientError unless its figures are numbers. A latency may be missing, or null where there was none."""
    latencies = {key: value for key, value in content.items() if key.endswith("_ms") and value is not None}
    for key, value in ({key: content.get(key) for key in _LOAD_TEST} | latencies).items():
        if not _is_number(value):
            raise ClientError(f"{path} is a load test whose {key} is no number: run `seesaw bench serve` again")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _unused(name: str, taken: dict[str, Any]) -> str:
    number = 2
    candidate = name
    while candidate in taken:
        candidate = f"{name} ({number})"
        number += 1
    return candidate
