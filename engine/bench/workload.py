"""What an offline benchmark runs: prompts and output lengths, and the order in which they come."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.values.errors import ConfigError

Order = Literal["file", "longest-first", "shortest-first", "shuffle"]


@dataclass(frozen=True)
class Job:
    """One request: its prompt, or only how long one it needs, and how many tokens answer it."""

    prompt_tokens: int
    output_tokens: int
    token_ids: tuple[int, ...] | None = None  # None: any will do


@dataclass(frozen=True)
class Workload:
    """Requests that run together, and what to call them."""

    name: str
    jobs: list[Job]


def add_workload_flag(add: Callable[..., Any]) -> None:
    """The flag `--workload`, which may be given several times, by a parser's or group's `add_argument`."""
    add(
        "--workload",
        type=parse_workload,
        action="append",
        default=[],
        metavar="NxLENGTHS",
        help="N random prompts of fixed lengths, as in 512x32:256 (input:output), or of the first N rows of a CSV with "
        "prompt_len and output_len, as in 800xlengths.csv; may be given several times",
    )


def parse_workload(text: str) -> Workload:
    """Read `512x32:256` or `800xlengths.csv`. Raises ConfigError."""
    matched = re.fullmatch(r"([1-9]\d*)x(?:([1-9]\d*):([1-9]\d*)|(.+\.csv))", text)
    if matched is None:
        raise ConfigError(f"workload {text!r} is not understood: write 512x32:256 (input:output) or 800xlengths.csv")
    num, prompt, output, file = matched.groups()
    if file is None:
        return Workload(text, [Job(int(prompt), int(output))] * int(num))
    return Workload(f"{num}x{Path(file).name}", read_lengths(Path(file), int(num)))


def read_lengths(
    path: Path, num: int, max_prompt_tokens: int | None = None, max_output_tokens: int | None = None
) -> list[Job]:
    """The first `num` rows of a CSV file with the columns `prompt_len` and `output_len`.

    Longer prompts are passed over, longer outputs cut. Raises ConfigError.
    """
    try:
        with path.open(newline="") as file:
            lengths = [(int(row["prompt_len"]), int(row["output_len"])) for row in csv.DictReader(file)]
        if any(min(row) < 1 for row in lengths):
            raise ValueError("a prompt or output without tokens")
    except OSError as error:
        raise ConfigError(
            f"cannot read {path} ({error.strerror}): name a CSV file with prompt_len and output_len"
        ) from None
    except (KeyError, ValueError, TypeError, csv.Error):
        raise ConfigError(
            f"{path} must be a CSV file with whole numbers of at least 1 as prompt_len and output_len"
        ) from None
    fitting = [(prompt, output) for prompt, output in lengths if prompt <= (max_prompt_tokens or prompt)]
    if len(fitting) < num:
        raise ConfigError(
            f"{path} has {len(fitting)} rows that fit, of {num} asked for: ask for fewer requests, or name another file"
        )
    return [Job(prompt, min(output, max_output_tokens or output)) for prompt, output in fitting[:num]]


def arrange(jobs: Sequence[Job], order: Order, seed: int) -> list[Job]:
    """The jobs in the order of the file, by the length of their prompts, or in a seeded random order."""
    match order:
        case "file":
            return list(jobs)
        case "shuffle":
            return random.Random(seed).sample(jobs, len(jobs))
        case _:
            return sorted(jobs, key=lambda job: job.prompt_tokens, reverse=order == "longest-first")


def prompts(jobs: Sequence[Job], vocab_size: int, seed: int) -> list[list[int]]:
    """Token ids of every job: its own, or random ones that depend on the seed only."""
    rng = random.Random(seed)
    return [
        list(job.token_ids) if job.token_ids is not None else rng.choices(range(vocab_size), k=job.prompt_tokens)
        for job in jobs
    ]
