"""What a client may ask of the sampler and of the text. Plain values: they cross every process boundary as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from seesaw.engine.sampling.structured import Reasoning, StructuredOutputs
from seesaw.engine.values.errors import RequestError

MAX_SEED = 2**63 - 1
MAX_INT = 2**31 - 1
MAX_LOGPROBS = 20  # vLLM's default
# What is computed with these in float32 must stay finite: of infinities even a forbidden token may come.
MAX_TEMPERATURE = 1e6
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100.0
MAX_BIAS = 1e6
MAX_TOKENS_NAMED = 4096  # in a bias or in bad words: each step works on them
GREEDY_BELOW = 1e-5  # a temperature under which dividing by it could overflow; vLLM's threshold


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sampling and stopping of one request. Defaults are OpenAI's, so `max_tokens` is 16."""

    max_tokens: int | None = 16  # None: all that fit behind the prompt
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
    # As in vLLM: of each token that is sampled its log-probability and those of so many likeliest ones, by the model
    # itself, before anything below is applied. None: not at all. `prompt_logprobs`: likewise of each prompt token.
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    presence_penalty: float = 0.0  # taken off the logits of tokens that the output has already
    frequency_penalty: float = 0.0  # the same, times how often
    repetition_penalty: float = 1.0  # divides (or multiplies, below 0) the logits of what prompt and output have
    logit_bias: dict[int, float] = {}  # added to the logits of these tokens
    min_tokens: int = 0  # before so many no token may stop it
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()  # what the output may not hold in a row
    allowed_token_ids: tuple[int, ...] | None = None  # and no others
    structured_outputs: StructuredOutputs | None = None  # the form that the output must have
    reasoning: Reasoning | None = None  # what may come before that form
    # What becomes of the text: for `engine.text.output_text`, which ends sequences by it. The engine's loop reads none.
    stop: str | Sequence[str] | None = None  # strings
    include_stop_str_in_output: bool = False  # the string or the token that ended it
    skip_special_tokens: bool = True
    bad_words: Sequence[str] = ()  # `engine.text.bad_words` makes `bad_words_token_ids` of them

    @property
    def stop_strings(self) -> Sequence[str]:
        """`stop`, however many they are."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop or ()

    def limit_tokens(self, room_tokens: int) -> int:
        """How many it may have where so many fit."""
        return room_tokens if self.max_tokens is None else min(self.max_tokens, room_tokens)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def tells(self) -> bool:
        """Whether more is to be told of tokens than their ids."""
        return self.logprobs is not None or self.prompt_logprobs is not None

    @property
    def size_tokens(self) -> int:
        """About as many token ids take the room of what it names; there may be more than in a prompt."""
        named = len(self.stop_token_ids) + len(self.logit_bias) + len(self.allowed_token_ids or ())
        form = self.structured_outputs
        num_chars = 0 if form is None else form.num_chars
        return named + sum(map(len, self.bad_words_token_ids)) + num_chars // 4

    def validate(self) -> None:
        """Raise RequestError, naming the field, if a value is out of range."""
        if self.max_tokens is not None and not 1 <= self.max_tokens <= MAX_INT:
            raise RequestError(f"max_tokens must be at least 1 and at most {MAX_INT}.", "max_tokens")
        if not 0.0 <= self.temperature <= MAX_TEMPERATURE:
            raise RequestError(
                f"temperature must be between 0 and {MAX_TEMPERATURE:.0f}, got {self.temperature}.", "temperature"
            )
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
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None and not 0 <= count <= MAX_LOGPROBS:
                raise RequestError(f"{name} must be between 0 and {MAX_LOGPROBS}, got {count}.", name)
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2.0 <= getattr(self, name) <= 2.0:
                raise RequestError(f"{name} must be between -2 and 2, got {getattr(self, name)}.", name)
        if not MIN_REPETITION_PENALTY <= self.repetition_penalty <= MAX_REPETITION_PENALTY:
            raise RequestError(
                f"repetition_penalty must be between {MIN_REPETITION_PENALTY:g} and {MAX_REPETITION_PENALTY:g}, "
                f"got {self.repetition_penalty}.",
                "repetition_penalty",
            )
        if not 0 <= self.min_tokens <= self.limit_tokens(MAX_INT):
            raise RequestError(
                f"min_tokens must be between 0 and max_tokens ({self.limit_tokens(MAX_INT)}), got {self.min_tokens}.",
                "min_tokens",
            )
        if not all(abs(bias) <= MAX_BIAS for bias in self.logit_bias.values()):
            raise RequestError(f"logit_bias must hold numbers of at most {MAX_BIAS:.0f} either way.", "logit_bias")
        for name, count in (
            ("logit_bias", len(self.logit_bias)),
            ("bad_words", sum(map(len, self.bad_words_token_ids))),
        ):
            if count > MAX_TOKENS_NAMED:
                raise RequestError(f"{name} names {count} tokens, more than {MAX_TOKENS_NAMED}.", name)
        if not all(self.bad_words_token_ids):
            raise RequestError("bad_words must not hold an empty one.", "bad_words")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids is empty: leave it out, or name a token.", "allowed_token_ids")

    def check_vocabulary(self, vocab: int) -> None:
        """Raise RequestError, naming the field, if a token is named that is not of the vocabulary."""
        named: dict[str, Collection[int]] = {
            "logit_bias": self.logit_bias,
            "bad_words": [token for word in self.bad_words_token_ids for token in word],
            "allowed_token_ids": self.allowed_token_ids or (),
            "reasoning": self.reasoning.tokens if self.reasoning else (),
        }
        for name, tokens in named.items():
            if tokens and not 0 <= min(tokens) <= max(tokens) < vocab:
                raise RequestError(f"{name} must name tokens between 0 and {vocab - 1}.", name)


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


class Processing(msgspec.Struct, frozen=True, array_like=True):
    """What is done to one sequence's logits before a token is sampled, and what is told of them: as the rank that
    samples needs it (`engine.wire.commands.SlotInit`). The fields are those of `SamplingParams`.
    """

    prompt_len: int
    tokens: list[int]  # that are known when it takes its slot, the prompt's first; none if nothing looks at them
    stops: list[int]  # what may not be sampled before `min_tokens`
    logprobs: int | None
    prompt_logprobs: int | None
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: dict[int, float]
    min_tokens: int
    bad_words: list[list[int]]
    allowed_token_ids: list[int] | None
    is_masked: bool  # by a grammar: each step that samples it gets a mask (`engine.wire.commands.Masks`)

    @classmethod
    def of(cls, params: SamplingParams, prompt_len: int, stops: Iterable[int], vocab: int) -> Processing | None:
        """None if there is nothing to do. Its tokens are still to come."""
        allowed = params.allowed_token_ids
        processing = cls(
            prompt_len,
            [],
            # Others are never sampled anyway.
            sorted(token for token in stops if token < vocab) if params.min_tokens else [],
            params.logprobs,
            params.prompt_logprobs,
            params.presence_penalty,
            params.frequency_penalty,
            params.repetition_penalty,
            params.logit_bias,
            params.min_tokens,
            [list(word) for word in params.bad_words_token_ids],
            None if allowed is None else sorted(set(allowed)),
            params.structured_outputs is not None,
        )
        return processing if params.tells or processing.adjusts else None

    @property
    def has_penalties(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed."""
        return bool(
            self.has_penalties
            or self.logit_bias
            or self.min_tokens
            or self.bad_words
            or self.allowed_token_ids is not None
            or self.is_masked
        )

    @property
    def looks_back(self) -> bool:
        """Whether it depends on tokens before the one that is sampled."""
        return self.has_penalties or any(len(word) > 1 for word in self.bad_words)
