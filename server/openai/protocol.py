"""What `/v1/completions` takes and gives.

Requests are pydantic models; responses are msgspec structs, since a chunk is encoded for every token.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from engine.errors import RequestError
from engine.sampling import SamplingParams

logger = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024

Prompt = str | list[str] | list[int] | list[list[int]]

# Parameters of OpenAI and vLLM that change what a client gets and are not supported, with the values that ask
# for nothing. Ignoring the others would silently give something else than was asked for.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "echo": (False,),
    "frequency_penalty": (0,),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logits_processors": ([],),
    "logprobs": (),
    "min_tokens": (0,),
    "presence_penalty": (0,),
    "priority": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}


class _PromptOnly(msgspec.Struct):
    prompt: msgspec.Raw = msgspec.Raw()


def _num_token_lists(body: bytes) -> int:
    """How many lists the prompt holds if it is a list of lists, else 0. Makes none of them: with millions that takes
    seconds, in which no other thread runs."""
    try:
        prompt = bytes(msgspec.json.decode(body, type=_PromptOnly).prompt)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0  # the model says what is wrong
    return prompt.count(b"[") - 1 if re.match(rb"\s*\[\s*\[", prompt) else 0


def _read_prompt(value: Any) -> Prompt:
    # By hand: pydantic's union reports one error per item and alternative, and is slow on a million ids.
    match value:
        case str():
            return value
        case list() if value and (
            all(type(item) is str for item in value) or _are_ids(value) or all(_are_ids(item) for item in value)
        ):
            return value
    raise ValueError("must be a string, a list of strings, a list of token ids, or a list of lists of token ids")


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


@lru_cache(maxsize=1000)  # once for each name
def _warn_of_unknown(name: str) -> None:
    logger.warning("requests hold the parameter %r, which Seesaw does not know and ignores", name)


class StreamOptions(BaseModel):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class CompletionRequest(BaseModel):
    """The body of a request. Null means the default everywhere."""

    model_config = ConfigDict(extra="allow")

    prompt: Annotated[Prompt, PlainValidator(_read_prompt, json_schema_input_type=Prompt)]
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    best_of: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    user: str | None = None
    # Beyond OpenAI's, as in vLLM:
    top_k: int | None = None
    min_p: float | None = None
    ignore_eos: bool = False
    stop_token_ids: list[int] | None = Field(default=None, max_length=1024)
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    @classmethod
    def parse(cls, body: bytes, max_prompts: int) -> CompletionRequest:
        """Raises pydantic's ValidationError, and RequestError for too many prompts."""
        num_lists = _num_token_lists(body)
        if num_lists > max_prompts:
            raise RequestError(
                f"prompt has {num_lists} entries, more than {max_prompts}: send fewer at once.", "prompt"
            )
        return cls.model_validate_json(body)

    @property
    def num_prompts(self) -> int:
        return len(self.texts or self.token_lists)

    # The validator saw that all entries are of the first one's kind.

    @property
    def texts(self) -> list[str]:
        """The prompts, if they are texts; else none."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return self.prompt if isinstance(self.prompt[0], str) else []  # type: ignore[return-value]

    @property
    def token_lists(self) -> list[list[int]]:
        """The prompts, if they are token ids; else none."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], str):
            return []
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt  # type: ignore[return-value,list-item]

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def check(self) -> None:
        """Raise RequestError for what no prompt could make right."""
        for name, value in (self.model_extra or {}).items():
            if name not in UNSUPPORTED:
                _warn_of_unknown(name[:100])
            elif value is not None and value not in UNSUPPORTED[name]:
                raise RequestError(f"{name} is not supported: leave it out.", name)
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise RequestError("best_of is not supported unless it equals n: leave it out.", "best_of")
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream to be true.", "stream_options")
        if len(self.stops) > MAX_STOP_STRINGS:
            raise RequestError(f"stop has {len(self.stops)} strings, more than {MAX_STOP_STRINGS}.", "stop")
        if not all(1 <= len(stop) <= MAX_STOP_CHARS for stop in self.stops):
            raise RequestError(f"Each stop string must have 1 to {MAX_STOP_CHARS} characters.", "stop")

    def sampling(self) -> SamplingParams:
        """The sampling asked for, validated. Raises RequestError."""
        given: dict[str, Any] = {
            "max_tokens": DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "seed": self.seed,
            "n": self.n,
            "ignore_eos": self.ignore_eos,
            "stop_token_ids": tuple(self.stop_token_ids or ()),
        }
        sampling = SamplingParams(**{name: value for name, value in given.items() if value is not None})
        sampling.validate()
        return sampling


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> Usage:
        return cls(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)


class Choice(msgspec.Struct, frozen=True):
    index: int
    text: str
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole response, or a chunk of a stream: OpenAI gives both the same shape."""

    id: str
    object: str = "text_completion"
    created: int  # Unix seconds
    model: str
    choices: list[Choice]
    usage: Usage | UnsetType = UNSET
