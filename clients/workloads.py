"""The requests of a load test, by data set: prompts, output lengths and, for traces, arrival times.

Called by `clients.load_test`. Prompts are text where the data is text, and random token ids where it is lengths.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from seesaw.clients.datasets import Tokenizer, load_sharegpt
from seesaw.clients.errors import ClientError
from seesaw.clients.random_text import RandomTexts, TextTokenizer
from seesaw.clients.recorder import Request
from seesaw.clients.sharegpt import sharegpt

SHAREGPT_MAX_PROMPT_TOKENS = 1024
DEFAULT_VOCAB = 256  # no model has fewer tokens
MAX_TOKENS = 10_000_000  # of a prompt or an output: no model reads or writes more


@dataclass(frozen=True)
class Workload:
    """Requests in the order they are sent. `arrivals_s` is only of data that has times: offsets, ascending."""

    requests: list[Request]
    arrivals_s: list[float] | None = None


def sharegpt_workload(
    path: Path | None, tokenizer: Tokenizer, num: int, seed: int, output_tokens: int | None = None
) -> Workload:
    """Conversations by the field's filter, from the public file or the fetched package.

    `output_tokens`: instead of each reference answer's length. Raises ClientError.
    """
    try:
        samples = load_sharegpt(path or sharegpt(), tokenizer, num, seed, max_prompt_tokens=SHAREGPT_MAX_PROMPT_TOKENS)
    except (OSError, ValueError) as error:
        raise ClientError(f"cannot draw {num} ShareGPT conversations: {error}") from None
    return Workload([Request(s.prompt, s.prompt_tokens, output_tokens or s.output_tokens) for s in samples])


def csv_workload(path: Path, num: int, seed: int, vocab_size: int) -> Workload:
    """The first `num` rows of a file with columns `prompt_len` and `output_len`. Raises ClientError."""
    rows = _read_rows(path, ("prompt_len", "output_len"), num)
    return Workload(_random_requests([(int(prompt), int(output)) for prompt, output in rows], seed, vocab_size))


def trace_workload(path: Path, num: int, seed: int, vocab_size: int) -> Workload:
    """As `csv_workload`, with a column `arrival_s`; times count from the first row's."""
    rows = _read_rows(path, ("arrival_s", "prompt_len", "output_len"), num)
    rows.sort(key=lambda row: row[0])
    requests = _random_requests([(int(prompt), int(output)) for _, prompt, output in rows], seed, vocab_size)
    return Workload(requests, [arrival_s - rows[0][0] for arrival_s, _, _ in rows])


def random_workload(
    num: int, input_tokens: int, output_tokens: int, range_ratio: float, seed: int, vocab_size: int
) -> Workload:
    """Lengths uniform within `1 - range_ratio` to `1 + range_ratio` times the given ones; at least 1."""
    rng = random.Random(seed)

    def draw(mean: int) -> int:
        return max(1, rng.randint(round(mean * (1 - range_ratio)), round(mean * (1 + range_ratio))))

    lengths = [(draw(input_tokens), draw(output_tokens)) for _ in range(num)]
    return Workload(_random_requests(lengths, seed, vocab_size))


def prefix_repetition_workload(
    num: int, prefix_tokens: int, suffix_tokens: int, num_prefixes: int, output_tokens: int, seed: int, vocab_size: int
) -> Workload:
    """Prompts that begin with one of some prefixes, evenly, in random order. vLLM leaves out what does not divide."""
    rng = random.Random(seed)

    def draw(tokens: int) -> list[int]:
        return rng.choices(range(vocab_size), k=tokens)

    prefixes = [draw(prefix_tokens) for _ in range(num_prefixes)]
    prompts = [prefixes[number % num_prefixes] + draw(suffix_tokens) for number in range(num)]
    rng.shuffle(prompts)
    return Workload([Request(prompt, len(prompt), output_tokens) for prompt in prompts])


def as_text(workload: Workload, tokenizer: TextTokenizer, seed: int) -> Workload:
    """The same with texts in place of random token ids."""
    texts = RandomTexts(tokenizer, seed)
    requests = []
    for request in workload.requests:
        text, tokens = texts.of(request.prompt) if isinstance(request.prompt, list) else (request.prompt, 0)
        requests.append(replace(request, prompt=text, input_tokens=tokens or request.input_tokens))
    return replace(workload, requests=requests)


def _random_requests(lengths: Sequence[tuple[int, int]], seed: int, vocab_size: int) -> list[Request]:
    rng = random.Random(seed)
    return [Request(rng.choices(range(vocab_size), k=prompt), prompt, output) for prompt, output in lengths]


def _read_rows(path: Path, columns: Sequence[str], num: int) -> list[list[float]]:
    rows: list[list[float]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            missing = [column for column in columns if column not in reader.fieldnames]
            if missing:
                raise ClientError(f"{path} has no column {missing[0]}: it must have {', '.join(columns)}")
            for row in reader:
                if len(rows) == num:
                    break
                try:
                    rows.append([_number(row, column) for column in columns])
                except ValueError as error:
                    raise ClientError(f"cannot read {path}, line {reader.line_num}: {error}") from None
    except (OSError, UnicodeError, csv.Error) as error:
        raise ClientError(f"cannot read {path}: {error}") from None
    if len(rows) < num:
        raise ClientError(f"{path} has {len(rows)} rows, fewer than --num-prompts {num}: ask for fewer")
    return rows


def _number(row: Mapping[str, str | None], column: str) -> float:
    """Seconds where the column is a time, else tokens. Raises ValueError."""
    text = row[column] or ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if column == "arrival_s":
        if not math.isfinite(value):
            raise ValueError(f"{column} must be a number of seconds, not {text!r}")
    elif not 1 <= value <= MAX_TOKENS or value != int(value):
        raise ValueError(f"{column} must be a whole number from 1 to {MAX_TOKENS}, not {text!r}")
    return value
