"""Carries out `Forward` commands on one rank: its stage and shard of the model, in the current layout.

Called by the worker, one step after another. What a rank does in a step follows from its coordinates:
first-stage ranks embed, the others receive; last-stage ranks sample, the others send. On CUDA all of it is
launched without waiting for the device; on the CPU it waits for what this step computes with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from seesaw.engine.device.moments import Moment, moment
from seesaw.engine.device.upload import download, upload
from seesaw.engine.kv.device_pool import DevicePool
from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.model.decoder import Decoder
from seesaw.engine.model.sums import Sums
from seesaw.engine.ops.base import BatchInputs, GraphOps, Ops
from seesaw.engine.parallel.groups import LayoutGroups
from seesaw.engine.sampling.logprobs import Logprobs
from seesaw.engine.sampling.params import RowSampling
from seesaw.engine.sampling.state import SamplerState
from seesaw.engine.weights.modes import Weights
from seesaw.engine.wire.commands import Forward
from seesaw.engine.worker.completion import Completion, Sampled
from seesaw.engine.worker.graphs import DecodeGraphs
from seesaw.engine.worker.slots import Rows, SlotTable
from seesaw.engine.worker.tokens import TokenBuffer

# Of a prompt whose log-probabilities are wanted: so many have logits at once.
_HEAD_ROWS = 128


def no_masks(id: int) -> torch.Tensor:
    """Where no sequence has a grammar."""
    raise ValueError(f"step {id} needs masks, and nobody sends any")


class Runner:
    """One rank's model in every layout of the plan, over its device pool. `layout` is the current one's index.

    `groups` and `sums` are by layout.
    """

    def __init__(
        self,
        geometry: KVGeometry,
        pool: DevicePool,
        weights: Weights,
        groups: Sequence[LayoutGroups],
        sums: Sequence[Sums],
        ops: Ops,
        num_slots: int,
        max_model_len: int,
    ) -> None:
        self.layout = geometry.plan.index(geometry.plan.first)
        self._shape = geometry.shape
        self._dtype: torch.dtype = getattr(torch, geometry.shape.dtype)
        self._device = pool.device
        self._pool = pool
        self._weights = weights
        self._groups = groups
        self._sums = sums
        self._ops = ops
        self._kv = [pool.layers(index) for index in range(len(groups))]
        self._max_blocks = geometry.blocks_for(max_model_len)
        self._slots = SlotTable(num_slots, self._max_blocks, pool.num_blocks, geometry.block_size)
        self._state = SamplerState(self._slots, num_slots, pool.num_blocks, geometry.shape.vocab, pool.device)
        in_flight = max(group.layout.max_in_flight for group in groups)
        self._tokens = TokenBuffer(num_slots, in_flight, pool.device)
        self._models: dict[int, Decoder] = {}
        self._graphs: dict[int, DecodeGraphs] = {}  # by layout
        self.change_layout(self.layout)

    def change_layout(self, layout: int) -> None:
        """Compute in another layout from now on, whose weights are in place. No step may be in flight."""
        self._groups[self.layout].drain()
        self._tokens.drain()
        self.layout = layout
        if layout not in self._models:  # for good: the addresses of a layout's weights never change
            weights, group = self._weights.stage(layout), self._groups[layout].tensor
            self._models[layout] = Decoder(self._shape, weights, self._ops, group, self._sums[layout])

    @torch.inference_mode()
    def capture(self, max_rows: int) -> None:
        """Capture the current layout's decode steps of up to `max_rows` sequences. Shards of a stage do it together."""
        if not isinstance(self._ops, GraphOps):
            return
        graphs = DecodeGraphs(
            self._models[self.layout],
            self._ops,
            self._kv[self.layout],
            self._pool.padding_block,
            max_rows,
            self._max_blocks,
            self._groups[self.layout].pipe.is_first,
        )
        graphs.capture()
        self._graphs[self.layout] = graphs

    def rehearse(self, num_tokens: int, num_rows: int) -> None:
        """Run the largest step of this rank's stage, as `alone` does: compiles kernels, and peaks.

        `num_tokens` of prompts, of which `num_rows` rows are sampled, in either way. Shards of a stage do it together.
        """
        longest = self._max_blocks * self._slots.block_size
        lens = torch.tensor([min(longest, num_tokens - start) for start in range(0, num_tokens, longest)]).int()
        tables = torch.full((len(lens), self._max_blocks), self._pool.padding_block, dtype=torch.int32)
        restricted = RowSampling(1.0, 0.9, 50, 0.01, seed=0)
        for row in (restricted, RowSampling(1.0, 1.0, 0, 0.0, seed=0)):
            self.alone(BatchInputs(lens, lens, tables), [row] * num_rows)
        if self._groups[self.layout].pipe.is_last:  # logits that are processed are a copy
            logits = self._models[self.layout].logits(self._noise(num_rows))
            if logits is not None:
                self._ops.sample(logits.to(torch.float32, copy=True), [restricted] * num_rows, [0] * num_rows)

    @torch.inference_mode()
    def alone(self, batch: BatchInputs, sampled: list[RowSampling]) -> Completion:
        """Run a step of this rank's stage on nonsense, without its neighbours, through a graph if one fits it.

        It writes K and V into the batch's blocks. The last stage samples so many rows, too, and nobody gets the tokens.
        Shards of a stage do it together.
        """
        model, pipe = self._models[self.layout], self._groups[self.layout].pipe
        if pipe.is_first:
            inputs = torch.zeros(batch.num_tokens, dtype=torch.int64, device=self._device)
        else:
            inputs = self._noise(batch.num_tokens)
        # Not what comes out of the layers: K and V that nobody has written may be NaN.
        rows = self._noise(len(sampled) if pipe.is_last else 0)
        _, start = self._compute(batch, self._graphs_for(batch), lambda: inputs)
        if len(rows):
            model.sample(rows, sampled, [0] * len(sampled))
        return Completion(Sampled(), start, self._mark())

    def _noise(self, rows: int) -> torch.Tensor:
        return torch.randn(rows, self._shape.hidden, dtype=self._dtype, device=self._device)

    @torch.inference_mode()
    def execute(self, forward: Forward, masks: Callable[[int], torch.Tensor] = no_masks) -> Completion:
        """`masks` waits for those of a step (`Inbox.masks`); called only on the rank that samples."""
        if forward.layout != self.layout:
            raise ValueError(f"step {forward.id} is for layout {forward.layout}, this rank is in {self.layout}")
        groups = self._groups[self.layout]
        incoming = None
        if not groups.pipe.is_first:
            incoming = groups.pipe.post((forward.num_tokens, self._shape.hidden), self._dtype, self._device)
        self._slots.update(forward)
        if groups.pipe.is_last:
            self._state.update(forward, samples=groups.feedback.is_sampler)
        rows = self._slots.rows(forward)
        graphs = self._graphs_for(rows.batch)
        inputs = (lambda: self._input_tokens(rows.tokens)) if incoming is None else incoming.wait
        hidden, start = self._compute(rows.batch, graphs, inputs)
        if not groups.pipe.is_last:
            groups.pipe.send(hidden if graphs is None else hidden.clone())  # a graph's next replay writes there
        sampled = self._sample(hidden, forward, rows, masks)
        return Completion(sampled, start, self._mark())

    def _graphs_for(self, batch: BatchInputs) -> DecodeGraphs | None:
        graphs = self._graphs.get(self.layout)
        return graphs if graphs is not None and graphs.fit(batch) else None

    def _compute(
        self, batch: BatchInputs, graphs: DecodeGraphs | None, inputs: Callable[[], torch.Tensor]
    ) -> tuple[torch.Tensor, Moment]:
        """Run the stage's layers over token ids or hidden states, once `inputs` has waited for them.

        Returns hidden states `[tokens, hidden]`, and the moment from which on the stage was busy with them. What was
        planned on the CPU while they were on their way counts as if it had been planned then.
        """
        model = self._models[self.layout]
        began_s = time.perf_counter()
        plan = None
        if graphs is None:
            plan = self._ops.plan(batch, model.num_heads, model.num_kv_heads)
        else:
            graphs.plan(batch)
        planned_s = time.perf_counter() - began_s
        hidden = inputs()
        start = self._mark(planned_s)
        if graphs is not None:
            return graphs.replay(hidden), start
        if self._groups[self.layout].pipe.is_first:
            hidden = model.embed(hidden)
        return model.layers(hidden, plan, self._kv[self.layout]), start

    def _mark(self, earlier_s: float = 0.0) -> Moment:
        """This moment on the device; on the CPU, one that lies so many seconds back."""
        now = moment(self._device)
        return now - earlier_s if isinstance(now, float) else now

    def _input_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        references = (tokens < 0).nonzero()[:, 0]
        slots = (~tokens[references]).tolist()
        if len(references) == len(tokens):
            return self._tokens.read(slots)
        ids = upload(tokens, self._device)
        if slots:
            ids[upload(references, self._device)] = self._tokens.read(slots)
        return ids

    def _sample(
        self, hidden: torch.Tensor, forward: Forward, rows: Rows, masks: Callable[[int], torch.Tensor]
    ) -> Sampled:
        """Sample where the head is, and pass the tokens to the first stage.

        Every rank of the replica knows which slots are sampled, so the tokens travel bare.
        """
        groups, sampled = self._groups[self.layout], Sampled()
        tokens = None
        if groups.pipe.is_last:
            sampled.prompts = self._prompt_logprobs(hidden, forward)
        if not rows.sampled:
            return sampled
        if groups.pipe.is_last:
            if len(rows.sampled) < len(hidden):
                hidden = hidden[upload(torch.tensor(rows.sampled), self._device)]
            tokens, sampled.logprobs = self._choose(hidden, rows, lambda: masks(forward.id))
            if tokens is not None:
                groups.feedback.send(tokens)
                sampled.tokens = download(tokens)
        if tokens is not None and groups.feedback.is_first_stage:
            self._tokens.write(rows.slots, tokens)
        elif groups.feedback.is_first_stage:
            self._tokens.expect(rows.slots, groups.feedback.post(len(rows.slots), self._device))
        return sampled

    def _choose(
        self, hidden: torch.Tensor, rows: Rows, masks: Callable[[], torch.Tensor]
    ) -> tuple[torch.Tensor | None, Logprobs | None]:
        """A token after each row, and what is to be told of them; nothing but on shard 0.

        Only of the special rows the whole logits are needed: all others are sampled as ever.
        """
        model, state = self._models[self.layout], self._state
        sampling = self._slots.sampling(rows.slots)
        processed = state.rows(rows.slots, rows.positions)
        if not processed:
            return model.sample(hidden, sampling, rows.positions), None
        special = [row.place for row in processed]
        others = sorted(set(range(len(sampling))).difference(special))
        drawn = self._draw(hidden, sampling, rows.positions, others) if others else None
        index = upload(torch.tensor(special), self._device)
        logits = model.logits(hidden[index])
        if logits is None:
            return None, None
        inputs = rows.tokens[torch.tensor(rows.sampled)[special]]
        scores = state.process(logits, processed, inputs, masks)
        chosen = self._ops.sample(scores, [sampling[i] for i in special], [rows.positions[i] for i in special])
        state.sampled(chosen, processed)
        tokens = chosen
        if drawn is not None:
            tokens = torch.empty(len(sampling), dtype=torch.int64, device=self._device)
            tokens[index] = chosen
            tokens[upload(torch.tensor(others), self._device)] = drawn
        return tokens, state.logprobs(logits, chosen, processed)

    def _draw(
        self, hidden: torch.Tensor, sampling: list[RowSampling], positions: list[int], rows: list[int]
    ) -> torch.Tensor | None:
        """Tokens of some rows that are not special."""
        index = upload(torch.tensor(rows), self._device)
        model = self._models[self.layout]
        return model.sample(hidden[index], [sampling[i] for i in rows], [positions[i] for i in rows])

    def _prompt_logprobs(self, hidden: torch.Tensor, forward: Forward) -> list[tuple[int, Logprobs]]:
        """Of the prompts that want them; the head takes some rows at a time, since its logits are large."""
        told: list[tuple[int, Logprobs]] = []
        first = len(forward.decodes)
        for index, chunk in enumerate(forward.chunks):
            processing = self._state.of(chunk.slot)
            if processing is not None and processing.prompt_logprobs is not None:
                end = min(chunk.start + len(chunk.tokens), processing.prompt_len - 1)
                for start in range(chunk.start, end, _HEAD_ROWS):
                    positions = range(start + 1, min(start + _HEAD_ROWS, end) + 1)
                    row = first + start - chunk.start
                    logits = self._models[self.layout].logits(hidden[row : row + len(positions)])
                    if logits is not None:
                        tokens = torch.tensor(processing.tokens[positions.start : positions.stop])
                        tops = [processing.prompt_logprobs] * len(positions)
                        told.append((index, Logprobs.of(logits, upload(tokens, self._device), tops, positions)))
            first += len(chunk.tokens)
        return told
