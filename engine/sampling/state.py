"""What the last stage's ranks keep of sequences whose logits are processed, by slot. Used by the runner.

Most sequences want a token and nothing else: of those nothing is kept, and steps of only such ones do not come here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import pad

from seesaw.engine.device.upload import upload
from seesaw.engine.sampling.logprobs import PIECE_ROWS, Logprobs
from seesaw.engine.sampling.params import Processing
from seesaw.engine.sampling.processors import Named, Places, add_bias, forbid, mask, penalize, replace_empty, spread
from seesaw.engine.wire.commands import Forward


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
    named: Named | None  # on the rank that samples

    @property
    def looks_back(self) -> bool:
        return self.named is not None and self.named.looks_back

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
        self._named: dict[int, Named] = {}
        self._ids = torch.zeros(num_blocks * tables.block_size, dtype=torch.int32, device=device)
        self._last = torch.zeros(num_slots, dtype=torch.int32, device=device)  # sampled, by slot

    def update(self, forward: Forward, samples: bool) -> None:
        """Take in a step's `inits`, once its `tables` are known. `samples`: this rank does, and keeps the tokens."""
        for init in forward.inits:
            processing = init.processing
            self._named.pop(init.slot, None)
            if processing is None:
                self._processing.pop(init.slot, None)
                continue
            self._processing[init.slot] = processing
            if not samples:
                continue
            self._named[init.slot] = Named(processing, self._vocab, self._device)
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
            ProcessedRow(place, slot, position, self._processing[slot], self._named.get(slot))
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
        forbidden, biased = Places(self._device), Places(self._device)
        for i, row in enumerate(rows):
            named = row.named
            assert named is not None
            forbidden.add(i, named.forbidden)
            if row.num_outputs < row.processing.min_tokens:
                forbidden.add(i, named.stops)
            biased.add(i, named.biased, named.bias)
        self._forbid_bad_words(scores, rows)
        forbid(scores, forbidden)
        add_bias(scores, biased)
        for some in self._penalized(rows):
            self._penalize(scores, rows, some)
        allowed = {i: row.named.allowed for i, row in enumerate(rows) if row.named and row.named.allowed is not None}
        if allowed:
            self._mask(scores, logits, list(allowed), torch.stack(list(allowed.values())))
        masked = [i for i, row in enumerate(rows) if row.processing.is_masked]
        if masked:
            self._mask(scores, logits, masked, upload(masks(), self._device))
        # Where all that there is was forbidden, the model's own logits count: no sampler takes a row of nothing.
        replace_empty(scores, lambda: logits.to(scores.dtype))
        return scores

    def _mask(self, scores: torch.Tensor, logits: torch.Tensor, rows: Sequence[int], bits: torch.Tensor) -> None:
        """Of these rows, ascending."""
        if len(rows) == len(scores):  # mostly: no copies
            for some, raw, of_some in zip(*(x.split(PIECE_ROWS) for x in (scores, logits, bits)), strict=True):
                mask(some, raw, of_some)
            return
        for index, of_some in zip(
            upload(torch.tensor(rows), self._device).split(PIECE_ROWS), bits.split(PIECE_ROWS), strict=True
        ):
            some = scores[index]
            mask(some, logits[index], of_some)
            scores[index] = some

    def sampled(self, tokens: torch.Tensor, rows: list[ProcessedRow]) -> None:
        """Remember the tokens of rows that are looked back at, of `[rows]`."""
        if looking := [(row.slot, i) for i, row in enumerate(rows) if row.looks_back]:
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
        looking = [i for i, row in enumerate(rows) if row.looks_back]
        if not looking:
            return
        slots = [rows[i].slot for i in looking]
        places = self._tables.places(slots, [rows[i].position - 1 for i in looking])
        at, ids, index = upload(torch.stack((places, inputs[looking], torch.tensor(slots))), self._device)
        self._ids[at] = torch.where(ids < 0, self._last[index], ids).int()

    def _forbid_bad_words(self, scores: torch.Tensor, rows: list[ProcessedRow]) -> None:
        """Those of several tokens, of which the output ends in all but the last."""
        found = [(i, row, row.named) for i, row in enumerate(rows) if row.named is not None and len(row.named.ends)]
        if not found:
            return
        width = max(named.width for _, _, named in found)
        slots = [row.slot for _, row, _ in found for _ in range(width)]
        # Before a prompt's begin comes anything: no word is compared with it.
        positions = [max(0, row.position - back) for _, row, _ in found for back in range(width, 0, -1)]
        before = self._ids[upload(self._tables.places(slots, positions), self._device)].view(-1, width)
        begins = torch.cat([pad(named.begins, (width - named.width, 0), value=-1) for _, _, named in found])
        ends = [named.ends for _, _, named in found]
        of = spread(list(range(len(found))), ends, self._device)
        ints = torch.tensor([[i for i, _, _ in found], [row.num_outputs for _, row, _ in found]])
        at, outputs = upload(ints, self._device)[:, of]
        is_there = ((before[of] == begins) | (begins < 0)).all(-1)
        is_there &= torch.cat([named.lengths for _, _, named in found]) <= outputs
        scores.index_put_((at, torch.cat(ends)), torch.where(is_there, -torch.inf, 0.0), accumulate=True)

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
