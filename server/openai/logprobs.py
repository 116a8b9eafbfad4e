"""From what the engine tells of tokens to the shapes in which clients are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from seesaw.engine.text.tokenizer import Tokenizer
from seesaw.engine.wire.logprobs import TokenLogprobs
from seesaw.server.openai.protocol.logprobs import (
    ChatLogprobs,
    CompletionLogprobs,
    ContentLogprob,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)

# JSON has no infinity: as in vLLM, of a token that is impossible.
LEAST_LOGPROB = -9999.0
_REMEMBERED_TOKENS = 1 << 16


class TokenNames:
    """What tokens are called: their texts, or their ids where those are asked for, as in vLLM."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._text = lru_cache(_REMEMBERED_TOKENS)(lambda token: tokenizer.decode([token]))

    def name(self, token: int, as_id: bool = False) -> str:
        return f"token_id:{token}" if as_id else self._text(token)


def likeliest(token: int, told: TokenLogprobs, top: int) -> Iterator[tuple[int, float]]:
    """The token that was taken, and the `top` likeliest ones: once each, with their log-probabilities."""
    yield token, _finite(told.logprob)
    for other, logprob in zip(told.top_ids[:top], told.top_logprobs[:top], strict=True):
        if other != token:
            yield other, _finite(logprob)


def completion_logprobs(
    names: TokenNames,
    tokens: Sequence[int],
    told: Sequence[TokenLogprobs | None],
    *,
    top: int,
    offset: int,
    as_ids: bool = False,
) -> CompletionLogprobs:
    """Of tokens whose text begins `offset` characters into the choice's. As in vLLM, the likeliest are told beside the
    token itself, so there may be one more of them than was asked for."""
    answer = CompletionLogprobs([], [], [], [])
    for token, one in zip(tokens, told, strict=True):
        name = names.name(token, as_ids)
        answer.tokens.append(name)
        answer.token_logprobs.append(None if one is None else _finite(one.logprob))
        answer.top_logprobs.append(None if one is None else _by_name(names, likeliest(token, one, top), as_ids))
        answer.text_offset.append(offset)
        offset += len(name)
    return answer


def _by_name(names: TokenNames, likeliest: Iterator[tuple[int, float]], as_ids: bool) -> dict[str, float]:
    """Pieces of characters are all called the same. The likeliest of those stands for them, for evaluations compare the
    best value here with the token's own to see if it is the greedy choice."""
    tops: dict[str, float] = {}
    for token, logprob in likeliest:
        name = names.name(token, as_ids)
        tops[name] = max(logprob, tops.get(name, logprob))
    return tops


def chat_logprobs(
    names: TokenNames, tokens: Sequence[int], told: Sequence[TokenLogprobs], *, top: int, as_ids: bool = False
) -> ChatLogprobs:
    """Of tokens of an answer, with the `top` likeliest in the place of each."""
    return ChatLogprobs(
        [
            ContentLogprob(
                *_content(names, token, one.logprob, as_ids),
                [
                    TopLogprob(*_content(names, other, logprob, as_ids))
                    for other, logprob in zip(one.top_ids[:top], one.top_logprobs[:top], strict=True)
                ],
            )
            for token, one in zip(tokens, told, strict=True)
        ]
    )


def prompt_logprobs(names: TokenNames, prompt: Sequence[int], told: Sequence[TokenLogprobs]) -> PromptLogprobs:
    """Of all tokens of a prompt."""
    return [None, *(_prompt(names, token, one) for token, one in zip(prompt[1:], told, strict=True))]


def _prompt(names: TokenNames, token: int, told: TokenLogprobs) -> dict[int, PromptLogprob]:
    answer = {token: PromptLogprob(_finite(told.logprob), told.rank, names.name(token))}
    for rank, (other, logprob) in enumerate(zip(told.top_ids, told.top_logprobs, strict=True), 1):
        answer.setdefault(other, PromptLogprob(_finite(logprob), rank, names.name(other)))
    return answer


def _content(names: TokenNames, token: int, logprob: float, as_ids: bool) -> tuple[str, float, list[int]]:
    return names.name(token, as_ids), _finite(logprob), list(names.name(token).encode())


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
