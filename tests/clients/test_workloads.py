"""Requests from lengths; ShareGPT's own rule is tested with `clients.datasets`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from seesaw.clients.errors import ClientError
from seesaw.clients.workloads import (
    as_text,
    csv_workload,
    prefix_repetition_workload,
    random_workload,
    sharegpt_workload,
    trace_workload,
)


def test_lengths_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("prompt_len,output_len\n3,5\n4,6\n9,9\n")
    workload = csv_workload(path, 2, seed=0, vocab_size=7)
    assert [(len(r.prompt), r.input_tokens, r.max_tokens) for r in workload.requests] == [(3, 3, 5), (4, 4, 6)]
    assert all(token in range(7) for request in workload.requests for token in request.prompt)
    assert workload == csv_workload(path, 2, seed=0, vocab_size=7) != csv_workload(path, 2, seed=1, vocab_size=7)
    assert workload.arrivals_s is None


def test_a_trace_brings_its_times(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("arrival_s,prompt_len,output_len\n12.5,3,5\n10,4,6\n")
    workload = trace_workload(path, 2, seed=0, vocab_size=256)
    assert workload.arrivals_s == [0.0, 2.5]
    assert [r.input_tokens for r in workload.requests] == [4, 3]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("prompt_len,output_len\n1,2\n", "1 rows, fewer"),
        ("a,b\n1,2\n", "no column prompt_len"),
        ("prompt_len,output_len\nx,1\n", "line 2: prompt_len must be a whole number from 1"),
        *(
            (f"prompt_len,output_len\n1,1\n1,{bad}\n", "line 3: output_len")
            for bad in ("nan", "-1", "0", "inf", "1e9", "")
        ),
        ("prompt_len,output_len\n1\n", "line 2: output_len"),
        ("prompt_len,output_len\n1,2\n1,\x00\n", "cannot read"),
        (f"prompt_len,output_len\n1,{'9' * 200_000}\n", "field larger than"),
        ("", "no column prompt_len"),
    ],
)
def test_a_csv_that_does_not_fit(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(content)
    with pytest.raises(ClientError, match=reason):
        csv_workload(path, 2, seed=0, vocab_size=256)


def test_a_trace_without_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("arrival_s,prompt_len,output_len\nnan,3,5\n")
    with pytest.raises(ClientError, match="line 2: arrival_s must be a number of seconds"):
        trace_workload(path, 1, seed=0, vocab_size=256)


def test_a_csv_as_spreadsheets_save_it(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes("prompt_len, output_len\r\n3,5.0\r\n".encode("utf-8-sig"))
    (request,) = csv_workload(path, 1, seed=0, vocab_size=7).requests
    assert (request.input_tokens, request.max_tokens) == (3, 5)
    path.write_bytes("prompt_len,output_len\n3,5\n".encode("utf-16"))
    with pytest.raises(ClientError, match="cannot read"):
        csv_workload(path, 1, seed=0, vocab_size=7)


class Letters:
    """Tokens are letters, `#` is special and begins every prompt, and `ab` is one token if it comes together."""

    vocab_size, all_special_ids = 4, [0]
    texts = ("#", "a", "b", "ab")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = [self.texts.index(piece) for piece in re.findall("ab|#|a|b", text)]
        return [0, *ids] if add_special_tokens else ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.texts[id] for id in token_ids)


def test_random_prompts_as_text_have_as_many_tokens() -> None:
    ids = random_workload(30, 40, 3, 0.5, seed=0, vocab_size=4)
    workload = as_text(ids, Letters(), seed=0)
    for request, before in zip(workload.requests, ids.requests, strict=True):
        assert isinstance(request.prompt, str) and "#" not in request.prompt
        assert len(Letters().encode(request.prompt)) == request.input_tokens
        assert abs(request.input_tokens - before.input_tokens) <= 1 and request.max_tokens == before.max_tokens
    assert workload == as_text(ids, Letters(), seed=0)


def test_random_lengths_stay_in_their_range() -> None:
    requests = random_workload(300, 100, 10, 0.5, seed=0, vocab_size=256).requests
    lengths = {r.input_tokens for r in requests}
    assert min(lengths) >= 50 and max(lengths) <= 150 and len(lengths) > 50
    assert {r.max_tokens for r in requests} == set(range(5, 16))
    fixed = random_workload(5, 100, 10, 0.0, seed=0, vocab_size=256).requests
    assert {(len(r.prompt), r.max_tokens) for r in fixed} == {(100, 10)}


def test_prefixes_repeat_evenly_and_in_random_order() -> None:
    workload = prefix_repetition_workload(11, 30, 4, 3, 2, seed=0, vocab_size=200)
    prompts = [request.prompt for request in workload.requests]
    assert {(len(r.prompt), r.input_tokens, r.max_tokens) for r in workload.requests} == {(34, 34, 2)}
    prefixes = [tuple(prompt[:30]) for prompt in prompts]
    assert sorted(Counter(prefixes).values()) == [3, 4, 4]
    assert any(a == b for a, b in pairwise(prefixes)) and len({tuple(prompt[30:]) for prompt in prompts}) == 11
    assert workload == prefix_repetition_workload(11, 30, 4, 3, 2, seed=0, vocab_size=200)
    assert workload != prefix_repetition_workload(11, 30, 4, 3, 2, seed=1, vocab_size=200)


def test_sharegpt(tmp_path: Path) -> None:
    class Words:
        def encode(self, text: str) -> list[int]:
            return [0] * len(text.split())

    path = tmp_path / "x.json"
    turns = [{"value": "w " * 5}, {"value": "w " * 6}]
    path.write_text(json.dumps([{"conversations": turns}]))
    (request,) = sharegpt_workload(path, Words(), 1, seed=0).requests
    assert (request.prompt, request.input_tokens, request.max_tokens) == ("w " * 5, 5, 6)
    assert sharegpt_workload(path, Words(), 1, 0, output_tokens=2).requests[0].max_tokens == 2
    with pytest.raises(ClientError, match="cannot draw 2"):
        sharegpt_workload(path, Words(), 2, seed=0)
