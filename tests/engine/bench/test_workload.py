"""Lengths from a file, orders, and prompts that every system gets alike."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest

from seesaw.engine.bench.workload import (
    Job,
    Workload,
    arrange,
    parse_workload,
    prefix_repetition,
    prompts,
    read_lengths,
)
from seesaw.engine.values.errors import ConfigError

JOBS = [Job(n, 1) for n in (5, 9, 1, 7)]


def test_orders() -> None:
    assert [job.prompt_tokens for job in arrange(JOBS, "file", 0)] == [5, 9, 1, 7]
    assert [job.prompt_tokens for job in arrange(JOBS, "longest-first", 0)] == [9, 7, 5, 1]
    assert [job.prompt_tokens for job in arrange(JOBS, "shortest-first", 0)] == [1, 5, 7, 9]
    many = [Job(n, 1) for n in range(100)]
    assert arrange(many, "shuffle", 1) == arrange(many, "shuffle", 1) != arrange(many, "shuffle", 2)
    assert sorted(arrange(many, "shuffle", 1), key=lambda job: job.prompt_tokens) == many


def test_prompts_are_the_jobs_own_or_random_ones_of_their_length() -> None:
    own, drawn = prompts([Job(2, 1, (8, 9)), Job(1000, 1)], vocab_size=50, seed=3)
    assert own == [8, 9]
    assert len(drawn) == 1000 and set(drawn) == set(range(50))
    assert prompts([Job(1000, 1)], 50, 3) == [drawn] != prompts([Job(1000, 1)], 50, 4)


def test_workloads_by_name(tmp_path: Path) -> None:
    assert parse_workload("3x32:256") == Workload("3x32:256", [Job(32, 256)] * 3)
    path = tmp_path / "lengths.csv"
    path.write_text("arrival_s,prompt_len,output_len\n0,10,3\n1,500,4\n2,1,1\n")
    assert parse_workload(f"2x{path}") == Workload("2xlengths.csv", [Job(10, 3), Job(500, 4)])
    wrongs = ("3x32", "0x1:1", "3x0:1", "x1:1", "3x1:1:1", "lengths.csv")
    for wrong in (*wrongs, "3x1+1:1", "3x1:1@2", "3x1+1:1@0", "3x1+:1@1", "3x1+1@1"):
        with pytest.raises(ConfigError, match="write 512x32:256"):
            parse_workload(wrong)


def test_prompts_that_begin_alike() -> None:
    load = parse_workload("11x30+4:2@3")
    assert load.name == "11x30+4:2@3"
    assert [(job.prompt_tokens, job.output_tokens) for job in load.jobs] == [(34, 2)] * 11
    numbers = [job.prefix.number for job in load.jobs if job.prefix is not None]
    assert sorted(Counter(numbers).values()) == [3, 4, 4] and numbers != sorted(numbers)
    assert prefix_repetition(11, 30, 4, 2, 3) == load != prefix_repetition(11, 30, 4, 2, 3, seed=1)
    drawn = prompts(load.jobs, vocab_size=50, seed=3)
    assert {len(prompt) for prompt in drawn} == {34}
    assert len({tuple(prompt[:30]) for prompt in drawn}) == 3
    assert len({tuple(prompt[30:]) for prompt in drawn}) == 11
    for a, b in itertools.combinations(range(11), 2):
        assert (drawn[a][:30] == drawn[b][:30]) == (numbers[a] == numbers[b])
    with pytest.raises(ConfigError, match="12 prefixes need as many requests, and there are 11"):
        parse_workload("11x30+4:2@12")


def test_lengths_are_filtered_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("prompt_len,output_len\n10,3\n500,4\n20,90\n")
    assert read_lengths(path, 2) == [Job(10, 3), Job(500, 4)]
    assert read_lengths(path, 2, 100, 50) == [Job(10, 3), Job(20, 50)]
    path.write_text(path.read_text(), encoding="utf-8-sig")  # as spreadsheets save it
    assert read_lengths(path, 1) == [Job(10, 3)]
    with pytest.raises(ConfigError, match=r"2 rows that fit, of 3 asked for: ask for fewer requests"):
        read_lengths(path, 3, 100)
    path.write_text("prompt,output\n1,2\n")
    with pytest.raises(ConfigError, match="prompt_len and output_len"):
        read_lengths(path, 1)
    with pytest.raises(ConfigError, match=r"cannot read .*: name a CSV file"):
        read_lengths(tmp_path / "none", 1)


@pytest.mark.parametrize("row", ["0,5", "5,0", "-3,5", "5", "5,x", "a" * 140_000])
def test_rows_that_are_no_lengths(tmp_path: Path, row: str) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text(f"prompt_len,output_len\n10,3\n{row}\n")
    with pytest.raises(ConfigError, match="at least 1 as prompt_len"):
        read_lengths(path, 1)
