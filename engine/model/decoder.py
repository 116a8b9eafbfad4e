"""One stage of a model on one rank: embedding, some decoder layers, final norm and head, as far as it has them.

The same code runs every layout: what a rank computes follows from the `StageWeights` it is given and the
shards it adds up with. The runner makes one for each layout and calls it once per forward. Between stages
travels one `[tokens, hidden]` tensor, the residual stream.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from seesaw.engine.model.families import family
from seesaw.engine.model.layers import Share
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.model.spec import embedding
from seesaw.engine.model.stage import StageWeights
from seesaw.engine.model.sums import Sums
from seesaw.engine.ops.base import Ops
from seesaw.engine.parallel.groups import TensorGroup
from seesaw.engine.sampling.params import RowSampling


class Decoder:
    """A rank's part of the model in one layout. Stateless: weights and KV belong to the caller."""

    def __init__(self, shape: ModelShape, weights: StageWeights, ops: Ops, group: TensorGroup, sums: Sums) -> None:
        self.shape = shape
        self._weights = weights
        self._ops = ops
        self._group = group
        self._sums = sums
        self._share = Share(shape, weights.num_slices, len(weights.slices))
        self._first_id = weights.slices.start * embedding(shape).out_size(weights.num_slices)
        layer = family(shape.family).layer()
        self.decoder_layers = [layer(self._share, operands, ops, sums) for operands in weights.layers]

    @property
    def num_heads(self) -> int:
        """This rank's query heads, for `Ops.plan`."""
        return self._share.heads

    @property
    def num_kv_heads(self) -> int:
        return self._share.kv_heads

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids `[tokens]` int64 to hidden states `[tokens, hidden]`, on every shard of the first stage."""
        table = self._weights.embed
        assert table is not None, "only the first stage embeds"
        if self._group.size == 1:
            return F.embedding(tokens, table)
        rows = tokens - self._first_id
        elsewhere = (rows < 0) | (rows >= len(table))
        hidden = F.embedding(rows.masked_fill(elsewhere, 0), table)
        return self._sums.total(hidden.masked_fill_(elsewhere[:, None], 0))

    def layers(self, hidden: torch.Tensor, plan: Any, kv_views: list[torch.Tensor]) -> torch.Tensor:
        """Run the stage's decoder layers over `[tokens, hidden]`, whose memory may be reused.

        `plan` is `Ops.plan`'s for this step; `kv_views` has each local layer's KV view (see `Ops`), which
        is read and written.
        """
        sums, eps = self._sums, self.shape.rms_eps
        delta: torch.Tensor | None = None  # this shard's part of what is to be added to the residual stream `hidden`
        for layer, kv in zip(self.decoder_layers, kv_views, strict=True):
            if delta is None:
                normed = self._ops.norm_for(hidden, layer.input_norm, eps, layer.attention_format)
            else:
                normed, hidden = sums.add_norm(delta, hidden, layer.input_norm, eps, layer.attention_format)
            delta = layer.attention(normed, plan, kv)
            normed, hidden = sums.add_norm(delta, hidden, layer.post_norm, eps, layer.mlp_format)
            delta = layer.mlp(normed)
        return hidden if delta is None else sums.total(delta, hidden)

    def sample(self, hidden: torch.Tensor, rows: list[RowSampling], positions: list[int]) -> torch.Tensor | None:
        """Sample a token after each of some rows `[rows, hidden]` of the last stage's output, as `Ops.sample`.

        All its shards must call this together. Returns int64 `[rows]` on shard 0, None on the others.
        """
        if self._group.size == 1 or any(row.is_restricted for row in rows):
            logits = self.logits(hidden)
            return None if logits is None else self._ops.sample(logits, rows, positions)
        # Each shard's best token instead of its logits: some bytes a row instead of the vocabulary.
        part = self._shard_logits(hidden)
        part[:, max(0, self.shape.vocab - self._first_id) :] = -torch.inf  # padding
        scores, ids = self._ops.best(part, rows, positions, self._first_id, self.shape.vocab)
        bests = self._group.gather_last(torch.stack((scores.double(), ids.double()), dim=1))
        if bests is None:
            return None
        scores, ids = bests.view(len(rows), self._group.size, 2).unbind(-1)
        return ids.masked_fill(scores < scores.amax(1, keepdim=True), torch.inf).amin(1).long()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Final norm and head over some rows `[rows, hidden]` of the last stage's output.

        All its shards must call this together. Returns `[rows, vocab]` on shard 0, None on the others.
        """
        logits = self._group.gather_last(self._shard_logits(hidden))
        return None if logits is None else logits[:, : self.shape.vocab]

    def _shard_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """This shard's columns of the logits; those behind the vocabulary's end mean nothing."""
        norm, head = self._weights.norm, self._weights.head
        assert norm is not None and head is not None, "only the last stage has the head"
        return head.product(self._ops.rms_norm(hidden, norm, self.shape.rms_eps))
