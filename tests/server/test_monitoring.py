"""A real scrape of a real server, held against Prometheus' rules and the dashboard we ship."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from soak_server import served_url

from tests.patience import PATIENCE_S

REPOSITORY = Path(__file__).parent.parent.parent
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")


@pytest.fixture(scope="module")
def scrape() -> Iterator[str]:
    """/metrics of `seesaw serve` on a simulated host that switched layouts and swapped."""
    flags = [
        "--executor",
        "simulated",
        "--prefill",
        "P2",
        "--decode",
        "T2",
        "--policy",
        "paper",
        "--surge-min-tokens",
        "0",
    ]
    command = [sys.executable, "-m", "seesaw.server.cli", "serve", *flags, "--port", "0", "--log-level", "error"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = served_url(process.stdout.readline())  # printed once it listens
        assert url is not None
        body = json.dumps({"prompt": "hello", "max_tokens": 40, "ignore_eos": True}).encode()
        for _ in range(3):
            fetch(f"{url}/v1/completions", body)
        yield fetch(f"{url}/metrics")
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def fetch(url: str, body: bytes | None = None) -> str:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        return str(response.read().decode())


def test_it_parses_and_shows_what_happened(scrape: str) -> None:
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(scrape)
        for sample in family.samples
    }
    assert samples["seesaw:generation_tokens_total",] == 120
    assert samples["seesaw:prompt_tokens_total",] == 15
    assert samples["seesaw:request_success_total", "length"] == 3
    assert samples["seesaw:time_to_first_token_seconds_count",] == 3
    assert samples["seesaw:transitions_total", "P2->T2"] == 3
    assert samples["seesaw:swap_bytes_total", "out"] == samples["seesaw:swap_bytes_total", "in"] > 0
    # A server that is behind merges a sequence's tokens; all in one output have no time between them.
    assert samples["seesaw:request_time_per_output_token_seconds_count",] == 3


@needs_promtool
def test_promtool_passes_it(scrape: str) -> None:
    """But for one rule: the colon of our prefix, which is vLLM's habit, is meant for recording rules."""
    text = re.sub(r"\bseesaw:", "seesaw_", scrape)
    result = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@needs_promtool
def test_promtool_passes_the_configuration() -> None:
    result = subprocess.run([str(PROMTOOL), "check", "config", str(REPOSITORY / "configs" / "prometheus.yml")])
    assert result.returncode == 0


def test_every_metric_of_the_dashboard_is_in_a_scrape(scrape: str) -> None:
    dashboard = json.loads((REPOSITORY / "configs" / "grafana" / "dashboard.json").read_text())
    queried = set(re.findall(r"(?:seesaw:|http_)\w+", json.dumps(dashboard)))
    families = list(text_string_to_metric_families(scrape))
    shown = {sample.name for family in families for sample in family.samples}
    assert queried <= shown


def test_the_panels_of_the_dashboard_fit() -> None:
    dashboard = json.loads((REPOSITORY / "configs" / "grafana" / "dashboard.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) >= 12
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))  # none lies over another
    assert max(x for x, _ in cells) < 24
