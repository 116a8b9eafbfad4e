"""Tokenizing and rendering off the event loop: long prompts must not hold up everybody's streams. Used by handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from engine.text.tokenizer import Tokenizer

T = TypeVar("T")

NUM_THREADS = 2


class TokenizerPool:
    """A tokenizer with threads of its own. Rust tokenizers release the GIL."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="tokenize")

    async def encode(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text."""
        return await self.run(lambda: self.tokenizer.encode(texts, add_special_tokens))

    async def run(self, work: Callable[[], T]) -> T:
        """The result of other work on a prompt, in the same threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
