"""What the bodies of `/v1/completions` and `/v1/chat/completions` have in common: sampling, stopping, streaming.

Requests are pydantic models; responses are msgspec structs, since a chunk is encoded for every token.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import msgspec
from pydantic import ConfigDict, Field

from seesaw.engine.sampling.defaults import SamplingDefaults
from seesaw.engine.sampling.params import MAX_INT, MAX_TOKENS_NAMED, SamplingParams
from seesaw.engine.values.errors import RequestError
from seesaw.server.openai.protocol.body import Body
from seesaw.server.openai.protocol.structured import StructuredRequest

logger = logging.getLogger(__name__)

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_BAD_WORDS = 1024
MAX_TOLD = 100  # parameters without effect
MAX_BIAS = 100.0  # OpenAI's; vLLM cuts larger ones down to it

# Parameters of OpenAI and vLLM that change what a client gets and are not supported, with the values that ask
# for nothing. Ignoring the others would silently give something else than was asked for.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "length_penalty": (1,),
    "logits_processors": ([],),
    "spaces_between_special_tokens": (True,),
    "use_beam_search": (False,),
}
# Of `SamplingParams`, under the same names.
SAMPLING_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "n", "min_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
# Parameters that do not change the answer of a server like this one: for OpenAI's own accounts, caches and speeds;
# and `best_of`, which vLLM has given up.
IGNORED = frozenset(
    (
        *("metadata", "prediction", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
        *("best_of", "service_tier", "store", "user", "verbosity"),
    )
)


_told: set[str] = set()


def _tell_of_ignored(name: str) -> None:
    """Once for each name, of so many that clients cannot fill the log with them."""
    if name in _told or len(_told) >= MAX_TOLD:
        return
    _told.add(name)
    if name in IGNORED:
        logger.info("requests hold the parameter %r, which is accepted and has no effect here", name)
    else:
        logger.warning("requests hold the parameter %r, which Seesaw does not know and ignores", name)
    if len(_told) == MAX_TOLD:
        logger.warning("requests held %d such parameters; no more will be told of", MAX_TOLD)


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationRequest(StructuredRequest):
    """The body of a request for text. Null means the default everywhere."""

    model_config = ConfigDict(extra="allow")

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = UNSUPPORTED

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = Field(default=None, max_length=MAX_TOKENS_NAMED)
    # Beyond OpenAI's, as in vLLM:
    top_k: int | None = None
    min_p: float | None = None
    ignore_eos: bool = False
    stop_token_ids: list[int] | None = Field(default=None, max_length=1024)
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    bad_words: list[str] | None = Field(default=None, max_length=MAX_BAD_WORDS)
    allowed_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    return_token_ids: bool | None = None
    priority: int | None = None
    cache_salt: str | None = Field(default=None, min_length=1)
    return_tokens_as_token_ids: bool | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def token_limit(self) -> tuple[int | None, str]:
        """The most tokens that an answer may have, None for all that fit, and the parameter that says so."""
        return self.max_tokens, "max_tokens"

    @property
    def num_top_logprobs(self) -> int | None:
        """How many likeliest tokens are to be told of in the place of each; None if nothing is."""
        raise NotImplementedError

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The same in the place of each token of the prompt."""
        return self.prompt_logprobs

    @property
    def needs_room(self) -> bool:
        """Whether the prompt must leave room for the token limit: it does if the limit is the client's own."""
        return self.token_limit[0] is not None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wants_running_usage(self) -> bool:
        """Whether each of its chunks has usage so far."""
        return self.wants_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats

    def check(self) -> None:
        """Raise RequestError for what no prompt could make right."""
        for name, value in (self.model_extra or {}).items():
            if name in self.unsupported:
                if value is not None and value not in self.unsupported[name]:
                    raise RequestError(f"{name} is not supported: leave it out.", name)
            else:
                _tell_of_ignored(name[:100])
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError("prompt_logprobs needs stream to be false.", "prompt_logprobs")
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens < -1:
            raise RequestError(
                "truncate_prompt_tokens must be at least 1, or -1 for as many as fit.", "truncate_prompt_tokens"
            )
        if self.truncate_prompt_tokens == 0:
            raise RequestError("truncate_prompt_tokens must leave a token: give at least 1.", "truncate_prompt_tokens")
        if not all(1 <= len(word) <= MAX_STOP_CHARS for word in self.bad_words or ()):
            raise RequestError(f"Each of bad_words must have 1 to {MAX_STOP_CHARS} characters.", "bad_words")
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream to be true.", "stream_options")
        if len(self.stops) > MAX_STOP_STRINGS:
            raise RequestError(f"stop has {len(self.stops)} strings, more than {MAX_STOP_STRINGS}.", "stop")
        if not all(1 <= len(stop) <= MAX_STOP_CHARS for stop in self.stops):
            raise RequestError(f"Each stop string must have 1 to {MAX_STOP_CHARS} characters.", "stop")

    def sampling(self, defaults: SamplingDefaults) -> SamplingParams:
        """The sampling asked for, validated. Raises RequestError."""
        limit, limit_name = self.token_limit
        if limit is not None and not 1 <= limit <= MAX_INT:
            raise RequestError(f"{limit_name} must be at least 1 and at most {MAX_INT}.", limit_name)
        given = {name: value for name in SAMPLING_FIELDS if (value := getattr(self, name)) is not None}
        bias = {token: min(MAX_BIAS, max(-MAX_BIAS, value)) for token, value in (self.logit_bias or {}).items()}
        sampling = SamplingParams(
            **defaults.values | given,
            max_tokens=limit,
            ignore_eos=self.ignore_eos,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            stop=self.stop,
            include_stop_str_in_output=self.include_stop_str_in_output,
            skip_special_tokens=self.skip_special_tokens,
            logprobs=self.num_top_logprobs,
            prompt_logprobs=self.num_prompt_logprobs,
            logit_bias=bias,
            bad_words=self.bad_words or (),
            allowed_token_ids=None if self.allowed_token_ids is None else tuple(self.allowed_token_ids),
        )
        sampling.validate()
        return sampling


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int  # that were found, and not computed


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> Usage:
        details = PromptTokensDetails(cached_tokens)
        return cls(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, details)
