"""Random prompts as text, for servers that take no token ids: texts that a tokenizer cuts into about as many tokens.

Called by `clients.workloads`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

MAX_TRIES = 10


class TextTokenizer(Protocol):
    """As transformers' tokenizers."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def all_special_ids(self) -> list[int]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


class RandomTexts:
    """Texts in place of random token ids."""

    def __init__(self, tokenizer: TextTokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        self._special = set(tokenizer.all_special_ids)
        self._ordinary = [id for id in range(tokenizer.vocab_size) if id not in self._special] or [0]
        self._num_added = len(tokenizer.encode(""))  # special tokens that every prompt gets

    def of(self, token_ids: Sequence[int]) -> tuple[str, int]:
        """A text that begins as these ids do and has as many tokens, if some tries find one; and how many it has.

        What a tokenizer makes of a text of random tokens is not those tokens: the text is cut or lengthened at its end
        until their number is right, as the field does.
        """
        wanted = max(1, len(token_ids) - self._num_added)
        ids = [self._draw(1)[0] if id in self._special else id for id in token_ids][:wanted]
        text = self._tokenizer.decode(ids)
        for _ in range(MAX_TRIES):
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            if len(ids) == wanted:
                break
            ids = ids[:wanted] + self._draw(max(0, wanted - len(ids)))
            text = self._tokenizer.decode(ids)
        return text, len(self._tokenizer.encode(text))

    def _draw(self, count: int) -> list[int]:
        return self._rng.choices(self._ordinary, k=count)
