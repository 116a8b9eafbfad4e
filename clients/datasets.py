"""Prompts with reference lengths from ShareGPT, for load tests, soaks and end-to-end tests.

Reads the public ShareGPT file (a JSON array, whole or cut off at its end) or the JSON lines that
`scripts/fetch_sharegpt.py` keeps. Called by `clients`, `scripts/soak.py` and the tests.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

READ_CHARS = 1 << 20
LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
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
    """First and second turn of every conversation that has two with text, in the file's order.

    Raises ValueError where the file is broken.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for item in iter_items(file):
            turns = first_turns(item)
            if turns is not None:
                yield turns


def first_turns(item: Mapping[str, Any]) -> tuple[str, str] | None:
    """The texts of a conversation's first two turns, or None if it has none."""
    turns = item.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2:
        return None
    first, second = map(_text, turns[:2])
    return None if first is None or second is None else (first, second)


def _text(turn: Any) -> str | None:
    """A turn is a text, or has one as its `value` (ShareGPT) or `content` (OpenAI)."""
    if isinstance(turn, dict):
        turn = turn.get("value", turn.get("content"))
    # Half of a surrogate pair is no character: no tokenizer takes it.
    return LONE_SURROGATE.sub("\ufffd", turn) if isinstance(turn, str) else None


def iter_items(file: TextIO, inner: str | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array or of JSON lines, one by one, up to the end or to where the file is cut off.

    An incomplete last object is dropped. Memory is bounded by the longest object. Raises ValueError for one that is
    broken, with its place. `inner`: the array is part of an object; this was read of it, and what follows it is left.
    """
    decoder = json.JSONDecoder()
    separators = "[, \t\r\n" if inner is not None else "[], \t\r\n"
    buffer, position = inner or "", 0
    passed = 0  # characters before the buffer
    wanted = READ_CHARS
    count = 0
    while True:
        position = _skip_separators(buffer, position, separators)
        if inner is not None and buffer[position : position + 1] == "]":
            return
        try:
            if position == len(buffer):
                raise json.JSONDecodeError("empty", buffer, position)
            item, position = decoder.raw_decode(buffer, position)
        except json.JSONDecodeError as error:
            if not _may_go_on(error):
                raise ValueError(f"item {count + 1} is broken at character {passed + error.pos}: {error.msg}") from None
            more = file.read(wanted)
            if not more:
                return
            passed += position
            buffer, position = buffer[position:] + more, 0
            wanted *= 2  # a retry parses the buffer again: doubling keeps the sum linear
            continue
        except RecursionError:
            raise ValueError(f"item {count + 1}, at character {passed + position}, is nested too deeply") from None
        wanted = READ_CHARS
        count += 1
        if isinstance(item, dict):
            yield item


def _may_go_on(error: json.JSONDecodeError) -> bool:
    """Whether more text could have made it valid: what was decoded ends too early, instead of wrongly."""
    rest = error.doc[error.pos :].strip()
    if not rest or error.msg.startswith("Unterminated string"):
        return True
    if error.msg.startswith("Invalid \\"):
        return len(rest) < len("\\u0000")
    return any(literal.startswith(rest) for literal in LITERALS)


def _skip_separators(buffer: str, position: int, separators: str) -> int:
    while position < len(buffer) and buffer[position] in separators:
        position += 1
    return position
