"""The queue's room: how many sequences, and tokens of prompts, may wait for their first token. Used by the bridge.

A request takes it until its output begins, the engine refuses it, or the engine has heard that it was aborted: what
counts is the work that is queued, and not who still waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.errors import QueueFullError
from seesaw.server.link.stream import LiveRequest


def size_tokens(prompt: Sequence[int], sampling: SamplingParams) -> int:
    """What a request takes of it, whatever the number of its continuations: they share all that is large."""
    return len(prompt) + sampling.size_tokens


class Room:
    """What is taken, of so much."""

    def __init__(self, max_sequences: int, max_tokens: int) -> None:
        self.max_sequences, self.max_tokens = max_sequences, max_tokens
        self.sequences = self.tokens = 0

    def check(self, more_sequences: int, more_tokens: int = 0) -> None:
        """Raise QueueFullError if there is not so much more."""
        for kind, taken, more, most in (
            ("sequences", self.sequences, more_sequences, self.max_sequences),
            ("tokens of prompts", self.tokens, more_tokens, self.max_tokens),
        ):
            if taken + more > most:
                raise QueueFullError(f"The queue is full: {taken} {kind} wait and at most {most} may; try again later.")

    def take(self, request: LiveRequest) -> None:
        """For a request of which no output has come."""
        self.sequences += len(request.waiting)
        self.tokens += request.size_tokens

    def begin(self, request: LiveRequest, index: int) -> None:
        """One of its continuations has an output, perhaps not its first."""
        if index in request.waiting:
            request.waiting.discard(index)
            self.sequences -= 1
            if not request.waiting:
                self.tokens -= request.size_tokens

    def give_back(self, request: LiveRequest) -> None:
        """Nothing of it waits any more."""
        for index in [*request.waiting]:
            self.begin(request, index)

    def clear(self) -> None:
        """Nothing waits any more."""
        self.sequences = self.tokens = 0
