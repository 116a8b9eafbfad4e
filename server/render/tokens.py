"""Tokenizing and rendering off the event loop: long prompts must not hold up everybody's streams. Used by handlers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from seesaw.engine.text.tokenizer import Tokenizer
from seesaw.server.threads import Lanes

T = TypeVar("T")

LONG_CHARS = 16 << 10  # four milliseconds or so
PIECE_CHARS = 256 << 10  # of a batch: others come between its pieces


class TokenizerPool:
    """A tokenizer with threads beside the event loop. Rust tokenizers release the GIL."""

    def __init__(self, tokenizer: Tokenizer, lanes: Lanes) -> None:
        # Each thread does its own work: in the one pool that the library has for all, short texts wait for long ones.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.tokenizer = tokenizer
        self._lanes = lanes

    async def encode(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text. Raises RequestError for one that cannot be tokenized."""
        encoded: list[list[int]] = []
        num_chars = sum(map(len, texts))
        for piece in _pieces(texts):
            encoded += await self.run(partial(self.tokenizer.encode, piece, add_special_tokens), num_chars)
        return encoded

    async def run(self, work: Callable[[], T], num_chars: int) -> T:
        """The result of other work, on a text so long."""
        return await self._lanes.run(work, is_long=num_chars > LONG_CHARS)


def _pieces(texts: Sequence[str]) -> Iterator[list[str]]:
    piece: list[str] = []
    num_chars = 0
    for text in texts:
        if piece and num_chars + len(text) > PIECE_CHARS:
            yield piece
            piece, num_chars = [], 0
        piece.append(text)
        num_chars += len(text)
    if piece:
        yield piece
