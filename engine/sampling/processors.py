"""What is done to logits before a token is sampled, in plain torch; as in vLLM, penalties come last.

Each takes float32 `[rows, vocab]` logits and changes some of them in place. `Places` says where.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from engine.device.upload import upload


@dataclass
class Places:
    """Tokens of rows, gathered on the host one by one, and a number for each."""

    rows: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, row: int, tokens: Iterable[int], value: float = 0.0) -> None:
        before = len(self.tokens)
        self.tokens += tokens
        added = len(self.tokens) - before
        self.rows += [row] * added
        self.values += [value] * added

    def index(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and tokens, int64."""
        rows, tokens = upload(torch.tensor([self.rows, self.tokens]), device)
        return rows, tokens


def forbid(logits: torch.Tensor, places: Places) -> None:
    if places.rows:
        logits[places.index(logits.device)] = -torch.inf


def add_bias(logits: torch.Tensor, places: Places) -> None:
    if places.rows:
        values = upload(torch.tensor(places.values, dtype=torch.float32), logits.device)
        logits.index_put_(places.index(logits.device), values, accumulate=True)


def mask(logits: torch.Tensor, raw: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Logits `[rows, vocab]` with -inf where the bits of int32 `[rows, words]` are not set.

    What may be sampled at all wins over all else: where a row has nothing left, its `raw` logits count.
    """
    bits = masks[:, :, None] >> torch.arange(32, dtype=torch.int32, device=masks.device) & 1
    allowed = bits.flatten(1)[:, : logits.shape[1]] > 0
    masked = logits.masked_fill(~allowed, -torch.inf)
    has_none = masked.amax(-1, keepdim=True) == -torch.inf
    return torch.where(has_none & allowed, raw.to(masked.dtype), masked)


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
