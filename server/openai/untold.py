"""What came of one choice and is not told of yet: of both kinds of completion, streamed and whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from seesaw.engine.wire.logprobs import TokenLogprobs

T = TypeVar("T", bound=TokenLogprobs | None)


class Untold(Generic[T]):
    """Tokens, and their log-probabilities if the request wants to be told of them. `T` says whether some have none."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._logprobs: list[T] = []

    def add(self, tokens: Sequence[int], logprobs: Sequence[T]) -> None:
        self._tokens += tokens
        self._logprobs += logprobs

    def take(self) -> tuple[list[int], list[T] | None]:
        """All of them, which are then forgotten. Log-probabilities are there for each token, or for none."""
        tokens, logprobs = self._tokens, self._logprobs
        self._tokens, self._logprobs = [], []
        return tokens, logprobs if len(logprobs) == len(tokens) else None
