"""`/tokenize` and `/detokenize`: what a prompt is to the model, without asking it anything."""

from __future__ import annotations

from fastapi import Request, Response

from seesaw.server.openai.chat import Chat
from seesaw.server.openai.protocol.tokenization import (
    Detokenize,
    DetokenizedText,
    TokenizeChat,
    TokenizeText,
    Tokens,
    read_tokenize,
)
from seesaw.server.openai.serving import Arrival, Serving, as_json


class Tokenization:
    """The handlers of both."""

    def __init__(self, serving: Serving, chat: Chat) -> None:
        self._serving = serving
        self._chat = chat

    async def tokenize(self, request: Request) -> Response:
        return await self._serving.answer(request, read_tokenize, self._tokenize)

    async def detokenize(self, request: Request) -> Response:
        return await self._serving.answer(request, Detokenize.parse, self._detokenize)

    async def _tokenize(self, body: TokenizeText | TokenizeChat, _: Arrival) -> Response:
        self._serving.check_model(body.model)
        if isinstance(body, TokenizeChat):
            text, param = await self._chat.render(body), "messages"
        else:
            text, param = body.prompt, "prompt"
        [tokens] = await self._serving.prompts.tokenize([text], body.add_special_tokens, param)
        decode = self._serving.tokens.tokenizer.decode
        strings = None
        if body.return_token_strs:
            strings = await self._serving.tokens.run(lambda: [decode([token]) for token in tokens], len(text))
        return as_json(Tokens(len(tokens), self._serving.max_model_len, tokens, strings))

    async def _detokenize(self, body: Detokenize, _: Arrival) -> Response:
        self._serving.check_model(body.model)
        self._serving.prompts.check_ids(body.tokens, "tokens")
        decode = self._serving.tokens.tokenizer.decode
        text = await self._serving.tokens.run(lambda: decode(body.tokens), len(body.tokens))
        return as_json(DetokenizedText(text))
