"""What `/v1/completions` takes and gives, beside what all requests for text have (`generation`)."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Self

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import PlainValidator

from seesaw.server.openai.protocol.body import SMALL_BODY_BYTES, check_size
from seesaw.server.openai.protocol.generation import UNSUPPORTED, GenerationRequest, Usage
from seesaw.server.openai.protocol.logprobs import CompletionLogprobs, PromptLogprobs
from seesaw.server.openai.protocol.token_ids import take_ids

DEFAULT_MAX_TOKENS = 16  # OpenAI's

Prompt = str | list[str] | list[int] | list[list[int]]


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


class CompletionRequest(GenerationRequest):
    """The body of a request."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = UNSUPPORTED | {
        "prompt_embeds": (),
        "suffix": ("",),
    }

    prompt: Annotated[Prompt, PlainValidator(_read_prompt, json_schema_input_type=Prompt)]
    add_special_tokens: bool = True
    echo: bool = False
    logprobs: int | None = None

    @classmethod
    def parse(cls, body: bytes) -> Self:
        if len(body) <= SMALL_BODY_BYTES:
            return cls.model_validate_json(body)
        check_size(body, most_entries=math.inf)
        ids, rest = take_ids(body, "prompt")
        check_size(rest)
        request = cls.model_validate_json(rest)
        if ids is not None:
            request.prompt = ids
        return request

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
    def token_limit(self) -> tuple[int | None, str]:
        if self.is_only_echoed:
            return 1, "max_tokens"  # as in vLLM, which shows nothing of it
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens, "max_tokens"

    @property
    def is_only_echoed(self) -> bool:
        """Whether nothing but the prompt is wanted, with its log-probabilities perhaps: for evaluations."""
        return self.echo and self.max_tokens == 0

    @property
    def num_top_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        return self.logprobs if self.echo and self.prompt_logprobs is None else self.prompt_logprobs

    @property
    def needs_room(self) -> bool:
        return self.max_tokens is not None


class Choice(msgspec.Struct, frozen=True):
    index: int
    text: str
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: CompletionLogprobs | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole response, or a chunk of a stream: OpenAI gives both the same shape."""

    id: str
    object: str = "text_completion"
    created: int  # Unix seconds
    model: str
    choices: list[Choice]
    usage: Usage | UnsetType = UNSET
