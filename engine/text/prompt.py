"""What a prompt may be, as in vLLM, and its token ids. Used by `seesaw.LLM`."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import NamedTuple, NotRequired, TypedDict

from seesaw.engine.text.tokenizer import Tokenizer


class TextPrompt(TypedDict):
    """A text, to be tokenized with the special tokens that the model expects before it."""

    prompt: str
    cache_salt: NotRequired[str]  # it shares cached prefixes with prompts of the same salt alone


class TokensPrompt(TypedDict):
    """Token ids, taken as they are, and perhaps the text that they were made of, which is only shown."""

    prompt_token_ids: Sequence[int]
    prompt: NotRequired[str]
    cache_salt: NotRequired[str]


Prompt = str | Sequence[int] | TextPrompt | TokensPrompt
_KEYS = TextPrompt.__annotations__.keys() | TokensPrompt.__annotations__.keys()

NO_PROMPT = "a prompt must be a text, a list of token ids, or a dict with one of them as prompt or prompt_token_ids"


class EncodedPrompt(NamedTuple):
    """A prompt as the engine takes it, and its text if that is known."""

    text: str | None
    token_ids: list[int]
    cache_salt: str = ""


def as_list(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """One prompt or many as a list. What begins with a number is one prompt of token ids. Raises ValueError for what
    is no prompt and holds none."""
    if hasattr(prompts, "tolist"):  # an array, of one prompt or a row for each
        prompts = prompts.tolist()
    if not isinstance(prompts, Iterable):
        raise ValueError(NO_PROMPT)
    if isinstance(prompts, (str, Mapping)):
        return [prompts]  # type: ignore[list-item]
    if isinstance(prompts, Sequence) and len(prompts) > 0 and isinstance(prompts[0], Integral):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
    """Token ids of each prompt; texts are tokenized all at once. Raises ValueError for what is no prompt."""
    encoded = [_unencoded(prompt) for prompt in prompts]
    token_lists = iter(tokenizer.encode([text for text, tokens in encoded if tokens is None and text is not None]))
    return [
        EncodedPrompt(text, next(token_lists) if tokens is None else tokens, _salt(prompt))
        for prompt, (text, tokens) in zip(prompts, encoded, strict=True)
    ]


def _unencoded(prompt: Prompt) -> tuple[str | None, list[int] | None]:
    """Its text and its token ids, as far as it says."""
    if isinstance(prompt, Mapping) and (unknown := prompt.keys() - _KEYS):
        raise ValueError(
            f"a prompt that is a dict has no {min(map(str, unknown))}: it takes {', '.join(sorted(_KEYS))}"
        )
    match prompt:
        case str():
            return prompt, None
        case {"prompt_token_ids": tokens}:
            return prompt.get("prompt"), _plain(tokens)  # type: ignore[union-attr,arg-type]
        case {"prompt": str(text)}:
            return text, None
        case Mapping():
            raise ValueError("a prompt that is a dict must have a text as its prompt, or prompt_token_ids")
        case _:
            return None, _plain(prompt)


def _salt(prompt: Prompt) -> str:
    match prompt:
        case {"cache_salt": str(salt)} if salt:
            return salt
        case {"cache_salt": salt} if salt is not None:
            raise ValueError("cache_salt must be a text that is not empty")
    return ""


def _plain(tokens: Sequence[int]) -> list[int]:
    """Token ids, whichever kind of integers they were."""
    try:
        return list(map(operator.index, tokens))
    except TypeError:
        raise ValueError(NO_PROMPT) from None
