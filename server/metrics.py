"""Prometheus metrics: what requests went through, and the engine's own counters. Served by `server.http.app`.

Names are vLLM's where the meaning is the same, under the prefix `seesaw:`; dashboards depend on them.
`http_requests_total` has no prefix there, either.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from seesaw.engine.wire.messages import EngineInfo, FinishReason, Speeds, Stats
from seesaw.server.histogram import Histogram

PREFIX = "seesaw:"

# Label values that show 0 from the start: a rate over a series that begins with its first event misses that event.
PHASES = ("prefill", "decode", "tail")
STEPS = ("prefill", "decode", "mixed")
DIRECTIONS = ("out", "in")
PARTS = ("drain", "evacuate", "weights")
GENERATING = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
STATUSES = ("200", "400", "404", "413", "500", "503")
IDLE_CAUSES = ("drain", "weights", "swap_in", "pipeline", "host")

# vLLM's buckets, in seconds.
TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
E2E_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        """`stats` gives the engine's latest snapshot."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody reads
        self._registry = CollectorRegistry()
        self._engine = EngineCollector(stats)
        self._registry.register(self._engine)
        self.time_to_first_token = self._histogram(
            "time_to_first_token", "From a request's arrival to a sequence's first token.", TTFT_BUCKETS
        )
        self.inter_token_latency = self._histogram(
            "inter_token_latency", "Between a sequence's outputs, as they reach the server.", ITL_BUCKETS
        )
        self.request_time_per_output_token = self._histogram(
            "request_time_per_output_token", "Mean time of a sequence's tokens after its first.", ITL_BUCKETS
        )
        self.e2e_request_latency = self._histogram(
            "e2e_request_latency", "From a request's arrival to the end of a sequence.", E2E_BUCKETS
        )
        self.request_success = Counter(
            PREFIX + "request_success", "Sequences that ended, by reason.", ["finished_reason"], registry=self._registry
        )
        for reason in FinishReason:
            self.request_success.labels(reason.wire)
        self.engine_restarts = Counter(
            PREFIX + "engine_restarts", "Engines started in place of one that died.", registry=self._registry
        )
        self.http_requests = Counter(
            "http_requests",
            "Answers, by the status that they begin with.",
            ["handler", "method", "status"],
            registry=self._registry,
        )
        for handler in GENERATING:
            for status in STATUSES:
                self.http_requests.labels(handler, "POST", status)

    def expect_layouts(self, info: EngineInfo) -> None:
        """Show the changes between these layouts from the start."""
        layouts = dict.fromkeys(filter(None, (info.prefill, info.decode, info.tail)))
        self._engine.changes = [f"{a}->{b}" for a, b in itertools.permutations(layouts, 2)]

    def add(self, collector: Collector) -> None:
        """Show what this one collects, too."""
        self._registry.register(collector)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"{PREFIX}{name}_seconds", help, buckets)
        self._registry.register(histogram)
        return histogram


class EngineCollector(Collector):
    """Shows the engine's latest `Stats`; keeps nothing itself."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._stats = stats
        self.changes: list[str] = []  # that may happen, as in "P2->T2"

    def collect(self) -> Iterator[Metric]:
        s = self._stats()
        yield from _speeds(s.speeds or Speeds({}, 0.0))
        used, total = s.device_blocks_used, s.device_blocks_total
        device_hits = s.prefix_cache_hits.get("device", 0)
        # The host is asked for what the devices did not have, if it has a pool at all.
        external_queries = s.prefix_cache_queries - device_hits if s.host_blocks_total else 0
        yield _gauge("num_requests_running", "Sequences decoding or being prefilled.", s.requests_running)
        yield _gauge("num_requests_waiting", "Sequences whose prefill has not started.", s.requests_waiting)
        yield _gauge("num_requests_hosted", "Sequences whose KV is in the host pool.", s.requests_hosted)
        yield _gauge(
            "kv_cache_usage_perc",
            "Share of the device KV blocks in use, 0 to 1; cached ones are free.",
            used / total if total else 0,
        )
        yield _gauge("device_kv_blocks_used", "Device KV blocks in use, of the fullest replica.", used)
        yield _gauge(
            "device_kv_blocks_cached",
            "Device KV blocks that prompts find until somebody needs them, of the replica that has most.",
            s.device_blocks_cached,
        )
        yield _gauge("device_kv_blocks", "Device KV blocks of a replica.", total)
        yield _gauge("host_kv_blocks_used", "Host KV blocks in use.", s.host_blocks_used)
        yield _gauge(
            "host_kv_blocks_cached", "Host KV blocks that prompts find until somebody needs them.", s.host_blocks_cached
        )
        yield _gauge("host_kv_blocks", "Host KV blocks.", s.host_blocks_total)
        yield _gauge("phase", "1 for the phase that the engine is in.", {p: int(p == s.phase) for p in PHASES}, "phase")
        yield _counter("prompt_tokens", "Tokens of prompts that were prefilled, cached ones included.", s.prompt_tokens)
        yield _counter("generation_tokens", "Tokens generated.", s.generation_tokens)
        yield _counter("prefix_cache_queries", "Tokens of prompts that were looked up.", s.prefix_cache_queries)
        yield _counter("prefix_cache_hits", "Tokens of those that were found on the devices.", device_hits)
        yield _counter(
            "external_prefix_cache_queries",
            "Tokens of those that were then looked up in the host pool.",
            external_queries,
        )
        yield _counter(
            "external_prefix_cache_hits",
            "Tokens of those that were found there.",
            s.prefix_cache_hits.get("host", 0),
        )
        yield _counter("num_preemptions", "Sequences preempted.", s.preemptions)
        yield _counter("transitions", "Changes of layout.", _from_zero(s.transitions, self.changes), "change")
        yield _counter(
            "transition_seconds",
            "Time spent changing layout: drain (the steps in flight end, which is useful work), evacuate and weights.",
            _from_zero(s.transition_seconds, PARTS),
            "part",
        )
        yield _counter(
            "swap_bytes",
            "KV bytes moved to (out) and from (in) the host pool.",
            _from_zero(s.swap_bytes, DIRECTIONS),
            "direction",
        )
        yield _counter("swap_seconds", "Time the copies took.", _from_zero(s.swap_seconds, DIRECTIONS), "direction")
        yield _counter("phase_seconds", "Time spent in each phase.", _from_zero(s.phase_seconds, PHASES), "phase")
        yield _counter(
            "idle_seconds",
            "Time in which a device computed nothing while there was work, by cause; averaged over the replicas.",
            _from_zero(s.idle_seconds, IDLE_CAUSES),
            "cause",
        )
        yield _counter("steps", "Forward steps, by what they computed.", _from_zero(s.steps, STEPS), "kind")


def _speeds(speeds: Speeds) -> Iterator[Metric]:
    """What was measured, in the numbers that the policy stands on."""
    layouts = speeds.layouts
    yield _gauge(
        "layout_prefill_tokens_per_second",
        "Prompt tokens that a layout is expected to prefill, by its times measured so far.",
        {layout: speed.prefill_tokens_per_second for layout, speed in layouts.items()},
        "layout",
    )
    decode = GaugeMetricFamily(
        PREFIX + "layout_decode_seconds",
        "Expected time of a token for each of so many sequences in every replica of a layout.",
        labels=["layout", "sequences"],
    )
    for layout, speed in layouts.items():
        for sequences, seconds in speed.decode_seconds.items():
            decode.add_metric([layout, str(sequences)], seconds)
    yield decode
    yield _gauge(
        "expected_transition_seconds", "Expected time of a change of layout's weights.", speeds.transition_seconds
    )


def _from_zero(counts: dict[str, int] | dict[str, float], known: Iterable[str]) -> dict[str, float]:
    return dict.fromkeys(known, 0.0) | counts


def _gauge(name: str, help: str, value: float | dict[str, int] | dict[str, float], label: str = "") -> Metric:
    return _fill(GaugeMetricFamily(PREFIX + name, help, labels=[label] if label else None), value)


def _counter(name: str, help: str, value: float | dict[str, int] | dict[str, float], label: str = "") -> Metric:
    return _fill(CounterMetricFamily(PREFIX + name, help, labels=[label] if label else None), value)


def _fill(family: GaugeMetricFamily | CounterMetricFamily, value: float | dict[str, int] | dict[str, float]) -> Metric:
    if isinstance(value, dict):
        for key, each in value.items():
            family.add_metric([key], each)
    else:
        family.add_metric([], value)
    return family
