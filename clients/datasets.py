"""Prompts with reference lengths from ShareGPT, for load tests, soaks and end-to-end tests.

Reads the public ShareGPT file (a JSON array, whole or cut off in the middle) or the JSON lines that
`scripts/fetch_sharegpt.py` keeps. Called by `clients`, `scripts/soak.py` and the tests.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

READ_CHARS = 1 << 20
MIN_TOKENS = 4  # the field's filter: shorter prompts and outputs are noise


class Tokenizer(Protocol):
    """As transformers' tokenizers: special tokens that a prompt gets are included."""

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Sample:
    """A prompt, its length, and how many tokens the reference answer had."""

    prompt: str
    prompt_tokens: int
    output_tokens: int


def load_sharegpt(
    path: Path,
    tokenizer: Tokenizer,
    num: int,
    seed: int = 0,
    *,
    max_total_tokens: int = 2048,
    max_prompt_tokens: int | None = None,
    max_output_tokens: int | None = None,
) -> list[Sample]:
    """Draw `num` conversations in seeded random order, by the field's rule.

    That is: the first turn is the prompt and the second the reference output; both have at least 4 tokens and
    together at most `max_total_tokens`. Prompts over `max_prompt_tokens` are passed over; outputs are then cut
    to `max_output_tokens`. Raises ValueError if the file holds too few such conversations.
    """
    pairs = list(read_pairs(path))
    random.Random(seed).shuffle(pairs)
    samples: list[Sample] = []
    for prompt, output in pairs:
        if len(samples) == num:
            break
        prompt_tokens = len(tokenizer.encode(prompt))
        if prompt_tokens < MIN_TOKENS or prompt_tokens > (max_prompt_tokens or max_total_tokens):
            continue
        output_tokens = len(tokenizer.encode(output))
        if output_tokens < MIN_TOKENS or prompt_tokens + output_tokens > max_total_tokens:
            continue
        samples.append(Sample(prompt, prompt_tokens, min(output_tokens, max_output_tokens or output_tokens)))
    if len(samples) < num:
        raise ValueError(f"{path} holds only {len(samples)} conversations that fit, of {num} asked for")
    return samples


def read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """First and second turn of every conversation that has two, in the file's order."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for item in iter_items(file):
            turns = item.get("conversations") or []
            if len(turns) >= 2:
                yield turns[0]["value"], turns[1]["value"]


def iter_items(file: TextIO) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array or of JSON lines, one by one, up to the end or to where the file is cut off.

    An incomplete last object is dropped. Memory is bounded by the longest object.
    """
    decoder = json.JSONDecoder()
    buffer, position = "", 0
    wanted = READ_CHARS
    while True:
        position = _skip_separators(buffer, position)
        try:
            if position == len(buffer):
                raise json.JSONDecodeError("empty", buffer, position)
            item, position = decoder.raw_decode(buffer, position)
        except json.JSONDecodeError:
            more = file.read(wanted)
            if not more:
                return
            buffer, position = buffer[position:] + more, 0
            wanted *= 2  # a retry parses the buffer again: doubling keeps the sum linear
            continue
        wanted = READ_CHARS
        if isinstance(item, dict):
            yield item


def _skip_separators(buffer: str, position: int) -> int:
    while position < len(buffer) and buffer[position] in "[], \t\r\n":
        position += 1
    return position
