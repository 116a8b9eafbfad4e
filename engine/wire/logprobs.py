"""What a step tells of a token beside its id."""

from __future__ import annotations

import msgspec


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """A token's log-probability by the model, and the likeliest tokens in its place, the likeliest first."""

    logprob: float
    rank: int  # so many tokens are as likely or likelier; 1: none is
    top_ids: list[int]
    top_logprobs: list[float]


class PromptLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Of a chunk of a prompt: `logprobs[i]` is of the token at position `start + i`."""

    chunk: int  # of the forward's
    start: int
    logprobs: list[TokenLogprobs]
