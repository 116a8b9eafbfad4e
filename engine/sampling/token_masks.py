"""Sets of token ids as bits: token `i` is bit `i % 32` of word `i // 32`, as `engine.wire.commands.Masks` has them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

ALL = 0xFFFFFFFF  # of a word

Mask = npt.NDArray[np.uint32]


def mask_words(vocab_size: int) -> int:
    """The length of one row's mask."""
    return -(-vocab_size // 32)


def mask_of(tokens: Collection[int], vocab_size: int) -> Mask:
    """The mask `[mask_words(vocab_size)]` of these tokens."""
    bits = np.zeros(32 * mask_words(vocab_size), dtype=np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


def tokens_of(mask: Mask) -> npt.NDArray[np.int64]:
    """The tokens of a mask, ascending."""
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
