"""Tokenizing off the event loop: long prompts must not hold up everybody's streams. Used by the handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from engine.text import Tokenizer

NUM_THREADS = 2


class TokenizerPool:
    """A tokenizer with threads of its own. Rust tokenizers release the GIL."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="tokenize")

    async def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.tokenizer.encode, texts)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
