"""What the last stage's ranks keep of sequences whose logits are processed, by slot. Used by the runner.

Most sequences want a token and nothing else: of those nothing is kept, and steps of only such ones do not come here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from engine.device.upload import upload
from engine.sampling.logprobs import PIECE_ROWS, Logprobs
from engine.sampling.params import Processing
from engine.sampling.processors import Places, add_bias, forbid, mask, penalize
from engine.wire.commands import Forward


class BlockTables(Protocol):
    """Which device blocks the slots have, on the host."""

    block_size: int

    def blocks(self, slots: Sequence[int], width: int) -> torch.Tensor:
        """The first `width` blocks of each slot, int32 `[slots, width]`; behind a slot's last one comes anything."""

    def places(self, slots: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Where in the pool a slot's position is, in tokens, int64 `[slots]`."""

    def first_places(self, slot: int, count: int) -> torch.Tensor:
        """The same of a slot's first positions, int64 `[count]`."""


# Of tokens of sequences that are looked back at together.
_PIECE_TOKENS = 1 << 20


@dataclass(frozen=True)
class ProcessedRow:
    """A row that a step samples and of which more is wanted than a token: row `i` of all such, in what follows."""

    place: int  # among all rows that the step samples
    slot: int
    position: int  # of the token that is sampled
    processing: Processing

    @property
    def num_outputs(self) -> int:
        """Tokens that the output has already."""
        return self.position - self.processing.prompt_len


class SamplerState:
    """The tokens of sequences that are looked back at lie like their K and V: an id for each position of a device
    block. What a sequence had before it took its slot comes with it; from then on each step's input is written down,
    which is a token that this rank sampled itself if the host does not know it yet.
    """

    def __init__(self, tables: BlockTables, num_slots: int, num_blocks: int, vocab: int, device: torch.device) -> None:
        self._tables = tables
        self._vocab = vocab
        self._device = device
        self._processing: dict[int, Processing] = {}
        self._allowed: dict[int, torch.Tensor] = {}  # by slot: a mask of the tokens that alone are allowed
        self._ids = torch.zeros(num_blocks * tables.block_size, dtype=torch.int32, device=device)
        self._last = torch.zeros(num_slots, dtype=torch.int32, device=device)  # sampled, by slot

    def update(self, forward: Forward, samples: bool) -> None:
        """Take in a step's `inits`, once its `tables` are known. `samples`: this rank does, and keeps the tokens."""
        for init in forward.inits:
            processing = init.processing
            self._allowed.pop(init.slot, None)
            if processing is None:
                self._processing.pop(init.slot, None)
                continue
            self._processing[init.slot] = processing
            if not samples:
                continue
            if processing.allowed_token_ids is not None:
                self._allowed[init.slot] = upload(mask_of(processing.allowed_token_ids, self._vocab), self._device)
            if processing.looks_back:
                blocks = next((len(x.blocks) for x in forward.tables if x.slot == init.slot), 0)
                known = torch.tensor(processing.tokens[: blocks * self._tables.block_size], dtype=torch.int32)
                places = self._tables.first_places(init.slot, len(known))
                self._ids[upload(places, self._device)] = upload(known, self._device)

    def of(self, slot: int) -> Processing | None:
        return self._processing.get(slot)

    def rows(self, slots: Sequence[int], positions: Sequence[int]) -> list[ProcessedRow]:
        """Of the rows that a step samples, by the slots and the positions of their new tokens: all that are special."""
        if not self._processing:
            return []
        pairs = zip(slots, positions, strict=True)
        return [
            ProcessedRow(place, slot, position, self._processing[slot])
            for place, (slot, position) in enumerate(pairs)
            if slot in self._processing
        ]

    def process(
        self,
        logits: torch.Tensor,
        rows: list[ProcessedRow],
        inputs: torch.Tensor,
        masks: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """From raw logits `[rows, vocab]` those that tokens are sampled from: a float32 copy, unless nothing changes.

        `inputs` int64 `[rows]`, on the host, is each row's input token: an id, or negative if it was sampled here.
        `masks` waits for those of the rows with a grammar, int32 `[of these, words]` on the host.
        """
        self._write_inputs(rows, inputs)
        if not any(row.processing.adjusts for row in rows):
            return logits
        scores = logits.to(torch.float32, copy=True)
        forbidden, biased = Places(), Places()
        for i, row in enumerate(rows):
            processing = row.processing
            forbidden.add(i, (word[0] for word in processing.bad_words if len(word) == 1))
            if row.num_outputs < processing.min_tokens:
                forbidden.add(i, processing.stops)
            for token, bias in processing.logit_bias.items():
                biased.add(i, [token], bias)
        self._forbid_bad_words(scores, rows)
        forbid(scores, forbidden)
        add_bias(scores, biased)
        for some in self._penalized(rows):
            self._penalize(scores, rows, some)
        allowed = [i for i, row in enumerate(rows) if row.slot in self._allowed]
        for few in batched(allowed, PIECE_ROWS):
            self._mask(scores, logits, few, torch.stack([self._allowed[rows[i].slot] for i in few]))
        masked = [i for i, row in enumerate(rows) if row.processing.is_masked]
        if masked:
            bits = masks()
            for start in range(0, len(masked), PIECE_ROWS):
                end = start + PIECE_ROWS
                self._mask(scores, logits, masked[start:end], upload(bits[start:end], self._device))
        # Where all that there is was forbidden, the model's own logits count: no sampler takes a row of nothing.
        has_none = scores.amax(-1, keepdim=True) == -torch.inf
        return torch.where(has_none, logits.to(scores.dtype), scores)

    def _mask(self, scores: torch.Tensor, logits: torch.Tensor, rows: Sequence[int], bits: torch.Tensor) -> None:
        index = upload(torch.tensor(rows), self._device)
        scores[index] = mask(scores[index], logits[index], bits)

    def sampled(self, tokens: torch.Tensor, rows: list[ProcessedRow]) -> None:
        """Remember the tokens of rows that are looked back at, of `[rows]`."""
        if looking := [(row.slot, i) for i, row in enumerate(rows) if row.processing.looks_back]:
            slots, index = upload(torch.tensor(looking).T.contiguous(), self._device)
            self._last[slots] = tokens[index].int()

    def logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, rows: list[ProcessedRow]) -> Logprobs | None:
        """Of the rows that want them, by their places, from the raw logits."""
        telling = {i: row.processing.logprobs for i, row in enumerate(rows) if row.processing.logprobs is not None}
        if not telling:
            return None
        index = upload(torch.tensor(list(telling)), self._device)
        places = [rows[i].place for i in telling]
        return Logprobs.of(logits[index], tokens[index], list(telling.values()), places)

    # --- tokens before

    def _write_inputs(self, rows: list[ProcessedRow], inputs: torch.Tensor) -> None:
        looking = [i for i, row in enumerate(rows) if row.processing.looks_back]
        if not looking:
            return
        slots = [rows[i].slot for i in looking]
        places = self._tables.places(slots, [rows[i].position - 1 for i in looking])
        at, ids, index = upload(torch.stack((places, inputs[looking], torch.tensor(slots))), self._device)
        self._ids[at] = torch.where(ids < 0, self._last[index], ids).int()

    def _forbid_bad_words(self, scores: torch.Tensor, rows: list[ProcessedRow]) -> None:
        """Those of several tokens, of which the output ends in all but the last."""
        found = [
            (i, row, word)
            for i, row in enumerate(rows)
            for word in row.processing.bad_words
            if 1 < len(word) <= row.num_outputs + 1
        ]
        if not found:
            return
        width = max(len(word) for _, _, word in found) - 1
        slots, positions, wanted = [], [], []
        for _, row, word in found:
            start = row.position - len(word) + 1
            padding = width - len(word) + 1  # with the first token, once more
            slots += [row.slot] * width
            positions += [start] * padding + list(range(start, row.position))
            wanted += [word[0]] * padding + word[:-1]
        before = torch.stack((self._tables.places(slots, positions), torch.tensor(wanted)))
        places, wanted_ids = upload(before, self._device)
        is_there = (self._ids[places] == wanted_ids).view(len(found), width).all(-1)
        at, last = upload(torch.tensor([[i for i, _, _ in found], [word[-1] for _, _, word in found]]), self._device)
        scores.index_put_((at, last), torch.where(is_there, -torch.inf, 0.0), accumulate=True)

    def _penalized(self, rows: list[ProcessedRow]) -> Iterator[list[int]]:
        """The rows with penalties, a few at a time: those together that are about as long, for all take the longest's
        room."""
        penalized = [i for i, row in enumerate(rows) if row.processing.has_penalties]
        penalized.sort(key=lambda i: -rows[i].position)
        while penalized:
            count = max(1, min(PIECE_ROWS, _PIECE_TOKENS // rows[penalized[0]].position))
            yield penalized[:count]
            del penalized[:count]

    def _penalize(self, scores: torch.Tensor, rows: list[ProcessedRow], some: list[int]) -> None:
        size = self._tables.block_size
        penalized = [rows[i] for i in some]
        longest = max(row.position for row in penalized)
        blocks = upload(self._tables.blocks([row.slot for row in penalized], -(-longest // size)), self._device)
        offsets = torch.arange(size, device=self._device)
        history = self._ids[(blocks.long()[:, :, None] * size + offsets).flatten(1)].long()
        ints = torch.tensor(
            [some, [row.position for row in penalized], [row.processing.prompt_len for row in penalized]]
        )
        index, lengths, prompts = upload(ints, self._device)
        positions = torch.arange(history.shape[1], device=self._device)
        history.masked_fill_(positions >= lengths[:, None], self._vocab)
        numbers = [
            (row.processing.presence_penalty, row.processing.frequency_penalty, row.processing.repetition_penalty)
            for row in penalized
        ]
        penalties = upload(torch.tensor(numbers, dtype=torch.float32), self._device)
        few = scores[index]
        penalize(few, history, positions >= prompts[:, None], *penalties.split(1, dim=1))
        scores[index] = few


def mask_of(tokens: Sequence[int], vocab: int) -> torch.Tensor:
    """A mask that allows these tokens: int32 `[words]`, as `engine.wire.commands.Masks` has them by row."""
    bits = np.zeros(-(-vocab // 32) * 32, dtype=np.uint8)
    bits[list(tokens)] = 1
    return torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32).copy())


def batched(items: Sequence[int], count: int) -> Iterator[Sequence[int]]:
    return (items[start : start + count] for start in range(0, len(items), count))
