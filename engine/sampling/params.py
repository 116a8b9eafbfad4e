"""What a client may ask of the sampler and of the text. A plain value: crosses every process boundary as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from engine.values.errors import RequestError

MAX_SEED = 2**63 - 1
MAX_INT = 2**31 - 1
GREEDY_BELOW = 1e-5  # a temperature under which dividing by it could overflow; vLLM's threshold


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sampling and stopping of one request. Defaults are OpenAI's, so `max_tokens` is 16."""

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 or -1: off
    min_p: float = 0.0
    seed: int | None = None
    n: int = 1
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    # Ends after so many tokens as if by itself: unlike max_tokens, no schedule can count on it. For benchmarks, whose
    # output lengths are given but must not be known beforehand. 0: off.
    ends_after: int = 0
    # What becomes of the text: for `engine.text.output_text`, which ends sequences by it. The engine's loop reads none.
    stop: str | Sequence[str] | None = None  # strings
    include_stop_str_in_output: bool = False  # the string or the token that ended it
    skip_special_tokens: bool = True

    @property
    def stop_strings(self) -> Sequence[str]:
        """`stop`, however many they are."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop or ()

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    def validate(self) -> None:
        """Raise RequestError, naming the field, if a value is out of range."""
        if not 1 <= self.max_tokens <= MAX_INT:
            raise RequestError(f"max_tokens must be at least 1 and at most {MAX_INT}.", "max_tokens")
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise RequestError(f"temperature must be a finite number >= 0, got {self.temperature}.", "temperature")
        if not 0.0 < self.top_p <= 1.0:
            raise RequestError(f"top_p must be in (0, 1], got {self.top_p}.", "top_p")
        if not -1 <= self.top_k <= MAX_INT:
            raise RequestError(f"top_k must be -1 or 0 (off), or between 1 and {MAX_INT}.", "top_k")
        if not all(0 <= token <= MAX_INT for token in self.stop_token_ids):
            raise RequestError(f"stop_token_ids must be between 0 and {MAX_INT}.", "stop_token_ids")
        if not all(self.stop_strings):
            raise RequestError("stop must hold no empty string.", "stop")
        if not 0.0 <= self.min_p <= 1.0:
            raise RequestError(f"min_p must be in [0, 1], got {self.min_p}.", "min_p")
        if not 1 <= self.n <= 128:
            raise RequestError(f"n must be between 1 and 128, got {self.n}.", "n")
        if self.seed is not None and not -MAX_SEED <= self.seed <= MAX_SEED:
            raise RequestError("seed must fit in 64 bits.", "seed")


class RowSampling(msgspec.Struct, frozen=True, array_like=True):
    """How one sequence's rows are sampled, as the workers need it (`engine.wire.commands.SlotInit`).

    Noise is a pure function of (seed, position of the sampled token), so that a seeded request gives
    the same tokens in any batch, layout, or after any preemption.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, instead of one drawn."""
        return self.temperature < GREEDY_BELOW

    @property
    def is_restricted(self) -> bool:
        """Whether tokens may be forbidden. Which ones depends on the whole vocabulary; the likeliest never is."""
        return not self.is_greedy and (self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0)
