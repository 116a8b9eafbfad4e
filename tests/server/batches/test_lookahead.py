"""Which of a job's rows go next."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest

from seesaw.server.batches import lookahead
from seesaw.server.batches.lengths import LEAST_NUMBER, UNLIMITED_TOKENS, Asked, Lengths
from seesaw.server.batches.lookahead import Lookahead, Planned
from seesaw.server.batches.rows import Request, Row


def row(number: int, **body: Any) -> Row:
    raw = json.dumps(body).encode()
    return Row(number, Request(str(number), "POST", "/v1/completions", msgspec.Raw(raw)), len(raw))


def answer(*tokens: int) -> bytes:
    """Of so many choices."""
    return json.dumps({"choices": [{}] * len(tokens), "usage": {"completion_tokens": sum(tokens)}}).encode()


def numbers(taken: list[Planned]) -> list[int]:
    return [planned.row.number for planned in taken]


def all_of(ahead: Lookahead) -> list[int]:
    return [number for taken in iter(ahead.take, []) for number in numbers(taken)]


def test_those_that_may_be_the_longest_go_first() -> None:
    limits = [5, 80, 20, "many", 80, -1]
    rows = (row(number, prompt=f"{number}", max_tokens=limit) for number, limit in enumerate(limits))
    assert all_of(Lookahead(rows, Lengths())) == [3, 5, 1, 4, 2, 0]  # without a limit that holds: as long as may be


@pytest.mark.parametrize("limit", [b"9" * 5000, b"1e999", b'"\xff"', b'{"a": 1e999}', b"[[1]]", b"true", b"-1", b"0"])
def test_a_limit_that_is_none_is_the_longest(limit: bytes) -> None:
    odd = row(1)._replace(request=Request("odd", "POST", "/v1/completions", msgspec.Raw(b'{"max_tokens":%b}' % limit)))
    assert all_of(Lookahead(iter([row(0, max_tokens=80), odd]), Lengths())) == [1, 0]


def test_rows_of_conversations_too() -> None:
    rows = (
        row(number, messages=[{"role": "user", "content": f"{number}"}], max_completion_tokens=number, max_tokens=9)
        for number in range(1, 5)
    )
    assert all_of(Lookahead(rows, Lengths())) == [4, 3, 2, 1]


def test_those_that_begin_alike_go_one_after_another() -> None:
    """At any depth; groups in the order of what is longest in each."""
    a, b = "a" * 300, "b" * 300
    prompts = [a + "1" + b, b + "x", a + "2" + b, a + "1" + b + "x", "c", b + "y", a + "2" + b + "y"]
    limits = [1, 30, 2, 4, 20, 3, 40]
    rows = (row(number, prompt=p, max_tokens=t) for number, (p, t) in enumerate(zip(prompts, limits, strict=True)))
    assert all_of(Lookahead(rows, Lengths())) == [6, 2, 3, 0, 1, 5, 4]


def test_equals_keep_their_order() -> None:
    rows = (row(number, prompt="same" * 1000, max_tokens=4) for number in range(200))
    assert all_of(Lookahead(rows, Lengths())) == list(range(200))


def test_short_rows_gather_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that is much longer than what is read ahead."""
    monkeypatch.setattr(lookahead, "MAX_ROWS", 100)
    monkeypatch.setattr(lookahead, "LEAST_TAKEN", 1)
    limits = random.Random(0).sample(range(1, 1001), 1000)
    rows = (row(number, prompt=f"{number}", max_tokens=limit) for number, limit in enumerate(limits))
    sent = [limits[number] for number in all_of(Lookahead(rows, Lengths()))]
    assert sorted(sent) == sorted(limits)
    assert max(sent[-50:]) < 100 < min(sent[:10])


@pytest.mark.parametrize("bound", ["MAX_ROWS", "MAX_BYTES"])
def test_no_more_is_read_than_may_be(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(lookahead, bound, 100 if bound == "MAX_ROWS" else 100 * row(0, prompt="0").bytes)
    monkeypatch.setattr(lookahead, "LEAST_TAKEN", 10)
    rows = iter([row(number, prompt="0") for number in range(300)])
    ahead = Lookahead(rows, Lengths())
    assert numbers(ahead.take()) == list(range(25))
    assert next(rows).number == 100
    assert all_of(ahead) == [number for number in range(25, 300) if number != 100]


def test_what_has_ended_tells_how_long_others_will_be() -> None:
    lengths = Lengths()
    short, long = Asked(prompt_bytes=1000, max_tokens=512), Asked(prompt_bytes=100, max_tokens=500)
    for _ in range(LEAST_NUMBER - 1):
        lengths.learn(short, answer(4, 4))
        lengths.learn(long, answer(100))
    assert lengths.expected_tokens(short) == 512  # until there are enough
    lengths.learn(short, answer(4))
    lengths.learn(long, answer(300))
    assert lengths.expected_tokens(short._replace(max_tokens=768)) == pytest.approx(6)  # as large a share
    assert 150 + 86 < lengths.expected_tokens(long) < 150 + 2 * 87  # beyond the mean by what they are spread
    for _ in range(LEAST_NUMBER):
        lengths.learn(Asked(1000, UNLIMITED_TOKENS), answer(50))
    assert lengths.expected_tokens(Asked(1000, UNLIMITED_TOKENS)) == pytest.approx(50)


def test_what_is_learned_counts_for_what_was_read_before() -> None:
    lengths = Lengths()
    rows = [row(number, prompt="a" * (10 if number % 2 else 1000), max_tokens=100) for number in range(200)]
    ahead = Lookahead(iter(rows), lengths)
    for planned in ahead.take():
        lengths.learn(planned.asked, answer(50 if planned.row.number % 2 else 5))
    order = all_of(ahead)
    assert [number % 2 for number in order] == sorted((number % 2 for number in order), reverse=True)
