"""How long a job's outputs may be, as those that have ended tell."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import msgspec

UNLIMITED_TOKENS = 1 << 20  # stands for the limit of a row that has none
MOST_DIGITS = len(str(UNLIMITED_TOKENS))
LEAST_NUMBER = 4  # of outputs, to tell what others will be
SPREADS = 2.0  # beyond the mean: what makes a job's end long is a row that turns out to be longer than most


class Asked(NamedTuple):
    """What is known of a row before it is answered."""

    prompt_bytes: int
    max_tokens: int

    @property
    def kind(self) -> tuple[int, int]:
        """The same of rows whose prompts and limits are about as large."""
        return self.prompt_bytes.bit_length(), self.max_tokens.bit_length()


class Lengths:
    """Of one job. Outputs are counted as shares of their limits, so that those which always reach them are known."""

    def __init__(self) -> None:
        self._shares: dict[tuple[int, int], _Shares] = {}

    def expected_tokens(self, asked: Asked) -> float:
        """Of an output that is longer than most of its kind. A kind that is not known yet is as long as it may be, so
        that it goes early and is known soon."""
        return asked.max_tokens * self._shares.get(asked.kind, _UNKNOWN).high

    def learn(self, asked: Asked, answer: bytes) -> None:
        """A row was answered with this body, of either endpoint."""
        answered = _decode(answer)
        tokens = answered.usage.completion_tokens / max(1, len(answered.choices))
        shares = self._shares.get(asked.kind, _UNKNOWN)
        self._shares[asked.kind] = shares.with_one_more(tokens / asked.max_tokens)


class _Shares(NamedTuple):
    number: int = 0
    mean: float = 0.0
    squares: float = 0.0  # the sum of squared distances from the mean

    def with_one_more(self, value: float) -> _Shares:
        number = self.number + 1
        mean = self.mean + (value - self.mean) / number
        return _Shares(number, mean, self.squares + (value - self.mean) * (value - mean))

    @property
    def high(self) -> float:
        if self.number < LEAST_NUMBER:
            return 1.0
        return min(1.0, self.mean + SPREADS * sqrt(self.squares / self.number))


_UNKNOWN = _Shares()


def limit_of(*limits: bytes) -> int:
    """The first of a row's limits that is one. They are JSON as it stands in the row, which nobody has checked: the
    number may be of any length, and no number at all."""
    numbers = (int(limit) for limit in limits if limit.isdigit() and len(limit) <= MOST_DIGITS)
    return next((number for number in numbers if 0 < number < UNLIMITED_TOKENS), UNLIMITED_TOKENS)


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Answered(msgspec.Struct):
    usage: _Usage
    choices: list[msgspec.Raw]


_decode = msgspec.json.Decoder(_Answered).decode
