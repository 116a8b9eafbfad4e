"""What `seesaw.LLM` gives for a prompt: its continuations, with vLLM's names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from seesaw.engine.wire.logprobs import TokenLogprobs


@dataclass
class CompletionOutput:
    """One continuation. `finish_reason` is `stop` or `length`, or `error` if its form could not be kept; `stop_reason`
    the stop string, or the one of `stop_token_ids`, that ended it; `token_times_s` says when each token came."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_times_s: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of each token, if they were asked for

    @property
    def cumulative_logprob(self) -> float | None:
        """Of all tokens together, if log-probabilities were asked for."""
        return math.fsum(told.logprob for told in self.logprobs) if self.logprobs else None


@dataclass
class RequestOutput:
    """The continuations of one prompt, by index. `prompt` is its text, if it was one. Times are seconds on the engine's
    clock."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    arrived_s: float
    first_token_s: float = math.inf
    finished_s: float = 0.0
    # Of each token, if they were asked for; of the first, which nothing comes before, None.
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    num_cached_tokens: int = 0  # of the prompt, whose KV was found

    @property
    def finished(self) -> bool:
        """All continuations have ended."""
        return all(output.finish_reason is not None for output in self.outputs)
