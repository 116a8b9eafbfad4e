"""Prompts as token ids: from texts, cut where that is asked for, and fit for the context."""

from __future__ import annotations

from collections.abc import Sequence

from seesaw.engine.values.errors import RequestError
from seesaw.engine.wire.messages import EngineInfo
from seesaw.server.openai.protocol.generation import GenerationRequest
from seesaw.server.render.tokens import TokenizerPool

# Before a prompt that is cut short, since a text that begins elsewhere may begin with other tokens.
_MORE_TOKENS = 64
_PIECE_CHARS = 64 << 10
_MANY_TOKENS = 64 << 10  # are checked off the event loop


class Prompts:
    """Makes and checks them for one model. Its methods raise RequestError, with the parameter that they are given."""

    def __init__(self, tokens: TokenizerPool, info: EngineInfo) -> None:
        self._tokens = tokens
        self._max_model_len = info.max_model_len
        self._vocab_size = info.vocab_size

    async def encode(
        self, texts: Sequence[str], add_special_tokens: bool, param: str, keep: int | None = None
    ) -> list[list[int]]:
        """Token ids of prompts, which fit the context. `keep`: as of `fit`."""
        if keep is not None:  # of the rest of a text no token would be kept
            texts = [await self._end_of(text, self._kept(keep)) for text in texts]
        prompts = (
            await self._tokens.encode(texts, add_special_tokens)
            if keep
            else await self.tokenize(texts, add_special_tokens, param)
        )
        return await self.fit(prompts, keep, param)

    async def fit(self, prompts: Sequence[list[int]], keep: int | None, param: str) -> list[list[int]]:
        """Prompts that are checked, of each no more than the last `keep` tokens; -1: than fit the context."""
        fitting = list(prompts) if keep is None else [prompt[-self._kept(keep) :] for prompt in prompts]
        if sum(map(len, fitting)) > _MANY_TOKENS:
            await self._tokens.run(lambda: self._check(fitting, param), _MANY_TOKENS)
        else:
            self._check(fitting, param)
        return fitting

    def _kept(self, keep: int) -> int:
        if keep > self._max_model_len:
            raise RequestError(
                f"truncate_prompt_tokens is {keep} but the context is {self._max_model_len} tokens: ask for fewer.",
                "truncate_prompt_tokens",
            )
        return self._max_model_len - 1 if keep == -1 else keep

    def text_of(self, prompt: Sequence[int]) -> str:
        """Of token ids, special ones included."""
        return self._tokens.tokenizer.decode(prompt)

    async def tokenize(self, texts: Sequence[str], add_special_tokens: bool, param: str) -> list[list[int]]:
        """Token ids of texts that may fit the context."""
        for text in texts:
            if not await self._may_fit(text):  # said now, since tokenizing it would take long, and much memory
                raise RequestError(
                    f"The prompt has {len(text)} characters, which do not fit this model's maximum context length of "
                    f"{self._max_model_len} tokens: shorten it.",
                    param,
                )
        return await self._tokens.encode(texts, add_special_tokens)

    async def _may_fit(self, text: str) -> bool:
        """False for a text that has too many characters for the context, or of which a part has twice its tokens."""
        if len(text) > self._max_model_len * self._tokens.tokenizer.max_token_chars:
            return False
        most = 2 * self._max_model_len
        if len(text) <= most:
            return True
        num_tokens = 0
        for start in range(0, len(text), _PIECE_CHARS):
            num_tokens += await self._num_tokens(text[start : start + _PIECE_CHARS], len(text))
            if num_tokens > most:  # where pieces begin and end, there may be some that the whole text has not
                return False
        return True

    async def _end_of(self, text: str, num_tokens: int) -> str:
        """As much of the text's end as has so many tokens, and some before."""
        wanted = num_tokens + _MORE_TOKENS
        end = text[-wanted * self._tokens.tokenizer.max_token_chars :]
        start, found = len(end), 0
        while start > 0 and found < 2 * wanted:
            stop, start = start, max(0, start - _PIECE_CHARS)
            if start > 0:
                found += await self._num_tokens(end[start:stop], len(end))
        return end[start:]

    async def _num_tokens(self, piece: str, num_chars: int) -> int:
        """Of a piece of a text that is so long."""
        encode = self._tokens.tokenizer.encode
        return await self._tokens.run(lambda: len(encode([piece], False)[0]), num_chars)

    def _check(self, prompts: Sequence[Sequence[int]], param: str) -> None:
        """Every prompt has a token, leaves room for one, and is of the vocabulary."""
        for prompt in prompts:
            if not prompt:
                raise RequestError("The prompt is empty: it must have at least one token.", param)
            if len(prompt) >= self._max_model_len:
                raise RequestError(
                    f"This model's maximum context length is {self._max_model_len} tokens, of which at least one must "
                    f"remain for the output, but the prompt has {len(prompt)}: shorten it.",
                    param,
                )
            self.check_ids(prompt, param)

    def check_ids(self, tokens: Sequence[int], param: str) -> None:
        """They are of the vocabulary."""
        if tokens and not 0 <= min(tokens) <= max(tokens) < self._vocab_size:
            raise RequestError(f"Token ids must be between 0 and {self._vocab_size - 1}.", param)

    def check_limit(self, body: GenerationRequest, prompts: Sequence[Sequence[int]]) -> None:
        """What the client asks for at most fits after each prompt. The words are vLLM's: clients read the numbers."""
        (limit, limit_name), longest = body.token_limit, max(map(len, prompts))
        if body.needs_room and limit is not None and longest + limit > self._max_model_len:
            raise RequestError(
                f"This model's maximum context length is {self._max_model_len} tokens. However, you requested {limit} "
                f"output tokens and your prompt contains at least {longest} input tokens, for a total of at least "
                f"{longest + limit} tokens. Please reduce the length of the input prompt or the number of requested "
                "output tokens.",
                limit_name,
            )
