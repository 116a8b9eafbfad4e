"""Carries out `Forward` commands on one rank: its stage and shard of the model, in the current layout.

Called by the worker, one step after another. What a rank does in a step follows from its coordinates:
first-stage ranks embed, the others receive; last-stage ranks sample, the others send. All of it is
launched without waiting for other ranks, except for what this step computes with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from engine.kv.device_pool import DevicePool
from engine.kv.geometry import KVGeometry
from engine.model.llama import Llama
from engine.model.ops.base import Ops
from engine.parallel.groups import LayoutGroups
from engine.steps import Chunk, Forward
from engine.weights.modes import Weights
from engine.worker.slots import SlotTable
from engine.worker.tokens import TokenBuffer


@dataclass(frozen=True)
class Completion:
    """A launched step. `tokens` are int64 `[sampled chunks]` on the sampling rank, None elsewhere.

    On the CPU a launched step is done; on a GPU it is once `event` has come.
    """

    tokens: torch.Tensor | None
    event: torch.cuda.Event | None

    def wait(self) -> list[int]:
        """The sampled tokens, once this rank's part of the step is done; none on other ranks."""
        if self.event is not None:
            self.event.synchronize()
        return self.tokens.tolist() if self.tokens is not None else []


class Runner:
    """One rank's model in every layout of the plan, over its device pool. `layout` is the current one's index."""

    def __init__(
        self,
        geometry: KVGeometry,
        pool: DevicePool,
        weights: Weights,
        groups: Sequence[LayoutGroups],
        ops: Ops,
        num_slots: int,
        max_model_len: int,
    ) -> None:
        self.layout = 0
        self._shape = geometry.shape
        self._dtype: torch.dtype = getattr(torch, geometry.shape.dtype)
        self._device = pool.device
        self._weights = weights
        self._groups = groups
        self._ops = ops
        self._kv = [pool.layers(index) for index in range(len(groups))]
        max_blocks = geometry.blocks_for(max_model_len)
        self._slots = SlotTable(num_slots, max_blocks, pool.num_blocks, geometry.block_size)
        in_flight = max(group.layout.pp for group in groups) + 1
        self._tokens = TokenBuffer(num_slots, in_flight, pool.device)
        self._models: dict[int, Llama] = {}
        self.change_layout(0)

    def change_layout(self, layout: int) -> None:
        """Compute in another layout from now on, whose weights are in place. No step may be in flight."""
        self._groups[self.layout].drain()
        self._tokens.drain()
        self.layout = layout
        if layout not in self._models:  # for good: the addresses of a layout's weights never change
            weights, group = self._weights.stage(layout), self._groups[layout].tensor
            self._models[layout] = Llama(self._shape, weights, self._ops, group)

    @torch.inference_mode()
    def execute(self, forward: Forward) -> Completion:
        if forward.layout != self.layout:
            raise ValueError(f"step {forward.id} is for layout {forward.layout}, this rank is in {self.layout}")
        groups, model, chunks = self._groups[self.layout], self._models[self.layout], forward.chunks
        self._slots.update(forward)
        plan = self._ops.plan(self._slots.batch(chunks), model.num_heads, model.num_kv_heads)
        if groups.pipe.is_first:
            hidden = model.embed(self._input_tokens(chunks))
        else:
            empty = torch.empty(forward.num_tokens, self._shape.hidden, dtype=self._dtype, device=self._device)
            hidden = groups.pipe.receive(empty)
        hidden = model.layers(hidden, plan, self._kv[self.layout])
        if not groups.pipe.is_last:
            groups.pipe.send(hidden)
        ends = accumulate(len(chunk.tokens) for chunk in chunks)
        sampled = [(chunk, end - 1) for chunk, end in zip(chunks, ends, strict=True) if chunk.sample]
        tokens = self._sample(hidden, sampled) if sampled else None
        return Completion(tokens, torch.cuda.current_stream().record_event() if hidden.is_cuda else None)

    def _input_tokens(self, chunks: list[Chunk]) -> torch.Tensor:
        tokens = [token for chunk in chunks for token in chunk.tokens]
        references = [index for index, token in enumerate(tokens) if token < 0]
        ids = torch.tensor(tokens, dtype=torch.int64).to(self._device)
        if references:
            rows = torch.tensor(references, device=self._device)
            ids[rows] = self._tokens.read([~tokens[index] for index in references])
        return ids

    def _sample(self, hidden: torch.Tensor, sampled: list[tuple[Chunk, int]]) -> torch.Tensor | None:
        """Sample the last rows of some chunks where the head is, and pass the tokens to the first stage.

        Every rank of the replica knows which slots are sampled, so the tokens travel bare.
        """
        groups, model = self._groups[self.layout], self._models[self.layout]
        chunks = [chunk for chunk, _ in sampled]
        slots = [chunk.slot for chunk in chunks]
        tokens = None
        if groups.pipe.is_last:
            rows = torch.tensor([row for _, row in sampled], device=self._device)
            logits = model.logits(hidden[rows])
            if logits is not None:
                positions = [chunk.start + len(chunk.tokens) for chunk in chunks]
                tokens = self._ops.sample(logits, self._slots.sampling(chunks), positions)
                groups.feedback.send(tokens)
        if tokens is not None and groups.feedback.is_first_stage:
            self._tokens.write(slots, tokens)
        elif groups.feedback.is_first_stage:
            self._tokens.expect(slots, groups.feedback.post(len(slots), self._device))
        return tokens
