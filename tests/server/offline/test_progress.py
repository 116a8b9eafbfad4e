"""What is told on the way."""

from __future__ import annotations

import re
import sys

import pytest

from seesaw.engine.wire.messages import Stats
from seesaw.server.batches.objects import RequestCounts
from seesaw.server.offline.progress import Progress
from tests.terminal import Terminal


def test_rates_are_since_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that goes on, and on a terminal, too."""
    counts, stats, trouble = RequestCounts(100, 40, 1), Stats(prompt_tokens=1000), None
    progress = Progress(lambda: counts, lambda: stats, lambda: trouble)
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = Progress(lambda: counts, lambda: stats, lambda: trouble)
    counts, stats = RequestCounts(100, 60, 2), Stats(prompt_tokens=9000, generation_tokens=5000)
    form = r"62 of 100 rows \(2 failed\), [\d.]+ rows/s, \d+ prompt and \d+ output tokens/s, \d\d:\d\d left"
    assert re.fullmatch(form, progress.line())
    bar.close()
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert " 62/100 " in shown and "output tokens/s, 2 failed" in shown
    counts = RequestCounts(100, 98, 2)
    assert "left" not in progress.line()


def test_what_stands_still_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(lambda: RequestCounts(100, 40, 1), Stats, lambda: "There is no room left.")
    assert progress.line() == "41 of 100 rows (1 failed); There is no room left."
    monkeypatch.setattr(sys, "stderr", Terminal())
    Progress(lambda: RequestCounts(100, 40, 1), Stats, lambda: "There is no room left.").close()
    assert "There is no room left." in sys.stderr.getvalue()  # type: ignore[attr-defined]
