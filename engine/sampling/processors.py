"""What is done to logits before a token is sampled, in plain torch, and what it needs of one sequence on the device.

Each changes some of float32 `[rows, vocab]` logits in place. `Places` says where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch.nn.functional import embedding

from seesaw.engine.device.upload import upload
from seesaw.engine.sampling.params import Processing
from seesaw.engine.sampling.token_masks import mask_of


class Named:
    """The tokens that one sequence's client names, on the device once and for all: there may be thousands."""

    def __init__(self, processing: Processing, vocab: int, device: torch.device) -> None:
        def ids(tokens: Iterable[int]) -> torch.Tensor:
            return upload(torch.tensor(list(tokens), dtype=torch.int64), device)

        self.looks_back = processing.looks_back
        self.allowed: torch.Tensor | None = None  # a mask of the tokens that alone are, int32 [words]
        if processing.allowed_token_ids is not None:
            mask = mask_of(processing.allowed_token_ids, vocab).view(np.int32)
            self.allowed = upload(torch.from_numpy(mask), device)
        self.forbidden = ids(word[0] for word in processing.bad_words if len(word) == 1)
        self.stops = ids(processing.stops)
        self.biased = ids(processing.logit_bias)
        self.bias = upload(torch.tensor(list(processing.logit_bias.values()), dtype=torch.float32), device)
        words = [word for word in processing.bad_words if len(word) > 1]
        self.width = max(map(len, words), default=1) - 1
        # Of words of several tokens: all but the last, behind negative ones where a word is shorter; and the last.
        begins = ids(token for word in words for token in [-1] * (self.width - len(word) + 1) + word[:-1])
        self.begins = begins.view(len(words), self.width)
        self.ends = ids(word[-1] for word in words)
        self.lengths = ids(len(word) - 1 for word in words)


@dataclass
class Places:
    """Tokens of rows, gathered one sequence after the other, and a number for each."""

    device: torch.device
    rows: list[int] = field(default_factory=list)
    tokens: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def add(self, row: int, tokens: torch.Tensor, values: torch.Tensor | None = None) -> None:
        if len(tokens):
            self.rows.append(row)
            self.tokens.append(tokens)
            if values is not None:
                self.values.append(values)

    def index(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and tokens, int64."""
        return spread(self.rows, self.tokens, self.device), torch.cat(self.tokens)


def spread(rows: list[int], items: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The row of each of the items of all rows, int64; nothing waits for the device."""
    counts = list(map(len, items))
    each, times = upload(torch.tensor([rows, counts]), device)
    return torch.repeat_interleave(each, times, output_size=sum(counts))


def forbid(logits: torch.Tensor, places: Places) -> None:
    if places.rows:
        logits[places.index()] = -torch.inf


def add_bias(logits: torch.Tensor, places: Places) -> None:
    if places.rows:
        logits.index_put_(places.index(), torch.cat(places.values), accumulate=True)


def mask(logits: torch.Tensor, raw: torch.Tensor, masks: torch.Tensor) -> None:
    """-inf to all logits `[rows, vocab]` but those whose bits of int32 `[rows, words]` are set.

    What may be sampled at all wins over all else: where a row has nothing left, its `raw` logits count.
    """
    # By the byte, and then the lesser of two numbers: choosing bit by bit takes a CPU ten times as long.
    most = embedding(masks.view(torch.uint8).int(), _most_by_byte(logits.device)).flatten(1)[:, : logits.shape[1]]
    torch.minimum(logits, most, out=logits)
    replace_empty(logits, lambda: torch.minimum(raw.to(logits.dtype), most))


def replace_empty(logits: torch.Tensor, instead: Callable[[], torch.Tensor]) -> None:
    """Take rows of nothing but -inf from `instead`."""
    is_empty = logits.amax(-1, keepdim=True) == -torch.inf
    if logits.device.type != "cpu" or is_empty.any():  # only on the CPU it takes no wait to see that there are none
        torch.where(is_empty, instead(), logits, out=logits)


@cache
def _most_by_byte(device: torch.device) -> torch.Tensor:
    """Float32 `[256, 8]`: by the bits of a byte of a mask, lowest first, inf or -inf."""
    bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
    return upload(torch.where(bits > 0, torch.inf, -torch.inf), device)


def penalize(
    logits: torch.Tensor,
    history: torch.Tensor,
    in_output: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
    repetition: torch.Tensor,
) -> None:
    """Presence, frequency (OpenAI) and repetition (CTRL, arXiv 1909.05858) penalties, float32 `[rows, 1]` each.

    `history` int64 `[rows, positions]` holds each row's tokens, and the vocabulary's size where there is none;
    `in_output` says which positions are of its output.
    """
    rows, vocab = logits.shape
    seen = logits.new_zeros(rows, vocab + 1)
    seen.scatter_(1, history, 1.0)
    factors = torch.where(seen[:, :vocab] > 0, repetition, 1.0)
    logits.copy_(torch.where(logits > 0, logits / factors, logits * factors))
    counts = seen.zero_()
    counts.scatter_add_(1, history.masked_fill(~in_output, vocab), torch.ones_like(history, dtype=torch.float32))
    counts = counts[:, :vocab]
    logits.sub_(frequency * counts).sub_(presence * (counts > 0))
