"""Specifications are tried out in a process that they may end or keep busy for ever."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

from seesaw.engine.sampling.structured import StructuredOutputs
from seesaw.engine.values.errors import QueueFullError, RequestError
from seesaw.server.link import grammar_check
from seesaw.server.link.grammar_check import GrammarCheck
from tests.patience import PATIENCE_S

ENDLESS = StructuredOutputs(
    "json_schema", json.dumps({"type": "string", "allOf": [{"pattern": f"[a-z]{{2}}{i}"} for i in range(100)]})
)
FINE = StructuredOutputs("regex", "a+")


@pytest.fixture
def checker() -> Iterator[GrammarCheck]:
    checker = GrammarCheck("bytes", 300, compile_limit_s=1.0)
    yield checker
    checker.close()


def test_what_passes_and_what_does_not(checker: GrammarCheck) -> None:
    checker.check(FINE, "guided_regex")
    with pytest.raises(RequestError, match=r"^guided_regex cannot be enforced: unclosed group\.$") as caught:
        checker.check(StructuredOutputs("regex", "(a"), "guided_regex")
    assert caught.value.param == "guided_regex"
    began = time.perf_counter()
    for _ in range(100):
        checker.check(FINE, "structured_outputs")  # no process is asked
    assert time.perf_counter() - began < 0.1


def kill_child(checker: GrammarCheck) -> None:
    assert checker._child is not None
    checker._child[0].kill()


def test_compilations_without_end(checker: GrammarCheck) -> None:
    with pytest.raises(RequestError, match="does not compile within 1 seconds"):
        checker.check(ENDLESS, "response_format")
    checker.check(FINE, "response_format")


def test_processes_that_end(checker: GrammarCheck) -> None:
    checker._compile_limit_s = PATIENCE_S
    checker.check(FINE, "response_format")
    killer = threading.Timer(0.5, kill_child, [checker])
    killer.start()
    with pytest.raises(RequestError, match="too complex"):
        checker.check(ENDLESS, "response_format")
    checker.check(StructuredOutputs("regex", "b"), "response_format")
    kill_child(checker)  # while it is idle
    assert checker._child is not None
    checker._child[0].join()
    checker.check(StructuredOutputs("regex", "c"), "response_format")


def test_no_more_wait_than_may(checker: GrammarCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_check, "MAX_QUEUED", 0)
    with pytest.raises(QueueFullError, match="too many"):
        checker.check(FINE, "response_format")


def test_nothing_is_checked_once_it_is_closed(checker: GrammarCheck) -> None:
    checker._compile_limit_s = PATIENCE_S
    checker.check(FINE, "response_format")
    threading.Timer(0.5, checker.close).start()
    for spec in (ENDLESS, StructuredOutputs("regex", "b")):
        with pytest.raises(QueueFullError, match="ending"):
            checker.check(spec, "response_format")
    assert checker._child is None


def test_a_tokenizer_that_is_not_there() -> None:
    with pytest.raises(RequestError, match="response_format cannot be enforced: there is no folder /no/such/folder"):
        GrammarCheck("/no/such/folder", 300).check(FINE, "response_format")
