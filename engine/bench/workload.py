"""What an offline benchmark runs: prompts and output lengths, and the order in which they come."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from seesaw.engine.values.errors import ConfigError

Order = Literal["file", "longest-first", "shortest-first", "shuffle"]


@dataclass(frozen=True)
class Prefix:
    """So many tokens, which are the same in all prompts of a workload that begin with this number's."""

    number: int
    tokens: int


@dataclass(frozen=True)
class Job:
    """One request: its prompt, or only how long one it needs, and how many tokens answer it."""

    prompt_tokens: int
    output_tokens: int
    token_ids: tuple[int, ...] | None = None  # None: any will do
    prefix: Prefix | None = None  # what the prompt begins with, if others do, too


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
        help="N random prompts of fixed lengths, as in 512x32:256 (input:output); with one of P prefixes, as in "
        "512x2000+20:8@16 (prefix+suffix:output@P); or of the first N rows of a CSV with prompt_len and output_len, as "
        "in 800xlengths.csv; may be given several times",
    )


def parse_workload(text: str) -> Workload:
    """Read `512x32:256`, `512x2000+20:8@16` or `800xlengths.csv`. Raises ConfigError."""
    count = r"([1-9]\d*)"
    if matched := re.fullmatch(rf"{count}x{count}:{count}", text):
        num, prompt, output = map(int, matched.groups())
        return Workload(text, [Job(prompt, output)] * num)
    if matched := re.fullmatch(rf"{count}x{count}\+{count}:{count}@{count}", text):
        return prefix_repetition(*map(int, matched.groups()))
    matched = re.fullmatch(rf"{count}x(.+\.csv)", text)
    if matched is None:
        raise ConfigError(
            f"workload {text!r} is not understood: write 512x32:256 (input:output), 512x2000+20:8@16 "
            "(prefix+suffix:output@prefixes) or 800xlengths.csv"
        )
    path = Path(matched[2])
    return Workload(f"{matched[1]}x{path.name}", read_lengths(path, int(matched[1])))


def prefix_repetition(
    num: int, prefix_tokens: int, suffix_tokens: int, output_tokens: int, num_prefixes: int, seed: int = 0
) -> Workload:
    """vLLM's data set of that name: prompts that begin with one of some prefixes, evenly, in a seeded random order.
    Raises ConfigError."""
    if num < num_prefixes:
        raise ConfigError(f"{num_prefixes} prefixes need as many requests, and there are {num}: ask for fewer prefixes")
    prefixes = [Prefix(number % num_prefixes, prefix_tokens) for number in range(num)]
    random.Random(seed).shuffle(prefixes)
    jobs = [Job(prefix_tokens + suffix_tokens, output_tokens, prefix=prefix) for prefix in prefixes]
    return Workload(f"{num}x{prefix_tokens}+{suffix_tokens}:{output_tokens}@{num_prefixes}", jobs)


def read_lengths(
    path: Path, num: int, max_prompt_tokens: int | None = None, max_output_tokens: int | None = None
) -> list[Job]:
    """The first `num` rows of a CSV file with the columns `prompt_len` and `output_len`.

    Longer prompts are passed over, longer outputs cut. Raises ConfigError.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
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
    prefixes: dict[Prefix, list[int]] = {}

    def draw(num_tokens: int) -> list[int]:
        return rng.choices(range(vocab_size), k=num_tokens)

    def prompt(job: Job) -> list[int]:
        if job.token_ids is not None:
            return list(job.token_ids)
        if job.prefix is None:
            return draw(job.prompt_tokens)
        if job.prefix not in prefixes:
            prefixes[job.prefix] = draw(job.prefix.tokens)
        return prefixes[job.prefix] + draw(job.prompt_tokens - job.prefix.tokens)

    return [prompt(job) for job in jobs]
