"""What the last stage's ranks keep of sequences whose logits are processed, by slot. Used by the runner.

Most sequences want a token and nothing else: of those nothing is kept, and steps of only such ones do not come here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import pad

from engine.device.upload import upload
from engine.sampling.logprobs import PIECE_ROWS, Logprobs
from engine.sampling.params import Processing
from engine.sampling.processors import Named, Places, add_bias, allow, forbid, mask, penalize, spread
from engine.wire.commands import Forward


class BlockTables(Protocol):
    """Which device blocks the slots have, on the host."""

    block_size: int

    def blocks(self, slots: Sequence[int], width: int) -> torch.Tensor:
        """The first `width` blocks of each slot, int32 `[slots, width]`; behind a slot's last one comes anything."""

    def places(self, slots: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Where in the pool a slot's position is, in tokens, int64 `[slots]`."""


@dataclass(frozen=True)
class ProcessedRow:
    """One of a step's rows that are sampled, of which more is wanted than a token."""

    row: int
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
            if processing is None:
                self._processing.pop(init.slot, None)
                self._named.pop(init.slot, None)
                continue
            self._processing[init.slot] = processing
            if samples:
                self._named[init.slot] = Named(processing, self._vocab, self._device)
            if samples and processing.looks_back:
                blocks = next((len(x.blocks) for x in forward.tables if x.slot == init.slot), 0)
                known = processing.tokens[: blocks * self._tables.block_size]
                places = self._tables.places([init.slot] * len(known), list(range(len(known))))
                self._ids[upload(places, self._device)] = upload(torch.tensor(known, dtype=torch.int32), self._device)

    def of(self, slot: int) -> Processing | None:
        return self._processing.get(slot)

    def rows(self, slots: Sequence[int], positions: Sequence[int]) -> list[ProcessedRow]:
        """Of the rows that a step samples, by the slots and the positions of their new tokens: all that are special."""
        if not self._processing:
            return []
        pairs = zip(slots, positions, strict=True)
        return [
            ProcessedRow(i, slot, position, self._processing[slot], self._named.get(slot))
            for i, (slot, position) in enumerate(pairs)
            if slot in self._processing
        ]

    def process(
        self,
        logits: torch.Tensor,
        processed: list[ProcessedRow],
        inputs: torch.Tensor,
        masks: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """From raw logits `[rows, vocab]` those that tokens are sampled from: a float32 copy, unless nothing changes.

        `inputs` int64 `[rows]`, on the host, is each row's input token: an id, or negative if it was sampled here.
        `masks` waits for those of the rows with a grammar, int32 `[rows, words]` on the host.
        """
        self._write_inputs([row for row in processed if row.looks_back], inputs)
        changed = [row for row in processed if row.processing.adjusts]
        if not changed:
            return logits
        scores = logits.to(torch.float32, copy=True)
        forbidden, biased = Places(self._device), Places(self._device)
        allowed: list[tuple[int, torch.Tensor]] = []
        for row in changed:
            named = row.named
            assert named is not None
            if named.allowed is not None:
                allowed.append((row.row, named.allowed))
            forbidden.add(row.row, named.forbidden)
            if row.num_outputs < row.processing.min_tokens:
                forbidden.add(row.row, named.stops)
            biased.add(row.row, named.biased, named.bias)
        for start in range(0, len(allowed), PIECE_ROWS):
            piece = allowed[start : start + PIECE_ROWS]
            allow(scores, [row for row, _ in piece], [tokens for _, tokens in piece])
        self._forbid_bad_words(scores, changed)
        forbid(scores, forbidden)
        add_bias(scores, biased)
        penalized = [row for row in changed if row.processing.has_penalties]
        for start in range(0, len(penalized), PIECE_ROWS):
            self._penalize(scores, penalized[start : start + PIECE_ROWS])
        masked = [row.row for row in changed if row.processing.is_masked]
        if masked:
            bits = masks()
            for start in range(0, len(masked), PIECE_ROWS):
                index = upload(torch.tensor(masked[start : start + PIECE_ROWS]), self._device)
                some = upload(bits[start : start + PIECE_ROWS], self._device)
                scores[index] = mask(scores[index], logits[index], some)
        return scores

    def sampled(self, tokens: torch.Tensor, processed: list[ProcessedRow]) -> None:
        """Remember the tokens of rows that are looked back at."""
        if rows := [row for row in processed if row.looks_back]:
            slots, index = upload(torch.tensor([[row.slot for row in rows], [row.row for row in rows]]), self._device)
            self._last[slots] = tokens[index].int()

    def logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, processed: list[ProcessedRow]) -> Logprobs | None:
        """Of the rows that want them, by row, from the raw logits."""
        tops = {row.row: row.processing.logprobs for row in processed if row.processing.logprobs is not None}
        if not tops:
            return None
        places = list(tops)
        index = upload(torch.tensor(places), self._device)
        return Logprobs.of(logits[index], tokens[index], list(tops.values()), places)

    # --- tokens before

    def _write_inputs(self, looking: list[ProcessedRow], inputs: torch.Tensor) -> None:
        if not looking:
            return
        slots = [row.slot for row in looking]
        places = self._tables.places(slots, [row.position - 1 for row in looking])
        tokens = inputs[torch.tensor([row.row for row in looking])]
        at, ids, index = upload(torch.stack((places, tokens, torch.tensor(slots))), self._device)
        self._ids[at] = torch.where(ids < 0, self._last[index], ids).int()

    def _forbid_bad_words(self, scores: torch.Tensor, changed: list[ProcessedRow]) -> None:
        """Those of several tokens, of which the output ends in all but the last."""
        found = [(row, row.named) for row in changed if row.named is not None and len(row.named.ends)]
        if not found:
            return
        width = max(named.width for _, named in found)
        slots = [row.slot for row, _ in found for _ in range(width)]
        # Before a prompt's begin comes anything: no word is compared with it.
        positions = [max(0, row.position - back) for row, _ in found for back in range(width, 0, -1)]
        before = self._ids[upload(self._tables.places(slots, positions), self._device)].view(-1, width)
        begins = torch.cat([pad(named.begins, (width - named.width, 0), value=-1) for _, named in found])
        ends = [named.ends for _, named in found]
        of = spread(list(range(len(found))), ends, self._device)
        ints = torch.tensor([[row.row for row, _ in found], [row.num_outputs for row, _ in found]])
        rows, outputs = upload(ints, self._device)[:, of]
        is_there = ((before[of] == begins) | (begins < 0)).all(-1)
        is_there &= torch.cat([named.lengths for _, named in found]) <= outputs
        scores.index_put_((rows, torch.cat(ends)), torch.where(is_there, -torch.inf, 0.0), accumulate=True)

    def _penalize(self, scores: torch.Tensor, penalized: list[ProcessedRow]) -> None:
        size = self._tables.block_size
        longest = max(row.position for row in penalized)
        blocks = upload(self._tables.blocks([row.slot for row in penalized], -(-longest // size)), self._device)
        offsets = torch.arange(size, device=self._device)
        history = self._ids[(blocks.long()[:, :, None] * size + offsets).flatten(1)].long()
        ints = torch.tensor([[row.row, row.position, row.processing.prompt_len] for row in penalized])
        index, lengths, prompts = upload(ints, self._device).unbind(1)
        positions = torch.arange(history.shape[1], device=self._device)
        history.masked_fill_(positions >= lengths[:, None], self._vocab)
        numbers = [
            (row.processing.presence_penalty, row.processing.frequency_penalty, row.processing.repetition_penalty)
            for row in penalized
        ]
        penalties = upload(torch.tensor(numbers, dtype=torch.float32), self._device)
        some = scores[index]
        penalize(some, history, positions >= prompts[:, None], *penalties.split(1, dim=1))
        scores[index] = some
