"""Log-probabilities of tokens, by raw logits: computed on the device, told on the host once they are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from seesaw.engine.device.upload import download
from seesaw.engine.wire.logprobs import TokenLogprobs

# Rows of a vocabulary that are in float32 at once.
PIECE_ROWS = 64


@dataclass(frozen=True)
class Logprobs:
    """Of some rows, in host memory (`download`): `values[i, 0]` is the row's token's, then come the likeliest.

    Row i tells only of its `tops[i]` likeliest, though there are as many columns as the row with most of them wants.
    """

    places: Sequence[int]  # what the caller calls these rows
    tops: Sequence[int]
    values: torch.Tensor  # float32 [rows, 1 + most]
    ids: torch.Tensor  # int64 [rows, 1 + most]: the token's rank, and the ids of the likeliest

    @classmethod
    def of(cls, logits: torch.Tensor, tokens: torch.Tensor, tops: Sequence[int], places: Sequence[int]) -> Logprobs:
        """Of `[rows, vocab]` logits and `[rows]` token ids on one device, for which the host does not wait."""
        most = max(tops)
        values, ids = [], []
        for start in range(0, len(logits), PIECE_ROWS):
            piece, chosen = logits[start : start + PIECE_ROWS], tokens[start : start + PIECE_ROWS, None]
            logprobs = piece.float().log_softmax(-1)
            own = logprobs.gather(1, chosen)
            best = logprobs.topk(most, dim=-1)
            rank = (logprobs >= own).sum(-1, keepdim=True)
            values.append(torch.cat((own, best.values), dim=1))
            ids.append(torch.cat((rank, best.indices), dim=1))
        return cls(places, tops, download(torch.cat(values)), download(torch.cat(ids)))

    def told(self) -> dict[int, TokenLogprobs]:
        """By place; once the device is done."""
        rows = zip(self.places, self.values.tolist(), self.ids.tolist(), self.tops, strict=True)
        return {place: TokenLogprobs(x[0], i[0], i[1 : 1 + top], x[1 : 1 + top]) for place, x, i, top in rows}
