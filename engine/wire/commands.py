"""Commands: what the engine tells the ranks, and the reports they send back.

A command is a small description, never a tensor. Every rank named by a command executes its commands in
the order of their ids; `Forward`s run one after another, swaps run beside them. Invariants that the
scheduler keeps, so that no rank ever has to wait for another rank's copies:

- a command names a device block only if every earlier *swap* that touches it has completed on all ranks
  of the replica (earlier forwards need no wait: they run in order on each rank);
- a swap-in names host blocks only after the swap-out that wrote them completed on all its ranks;
- a `Transition` is sent only when no `Forward` is in flight anywhere. Swaps may be: they carry their layout.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from seesaw.engine.cost.rank_times import RankTimes
from seesaw.engine.sampling.params import Processing, RowSampling
from seesaw.engine.wire.logprobs import PromptLogprobs, TokenLogprobs

IntArray = npt.NDArray[np.int32]


def num_slots(max_num_seqs: int) -> int:
    """Slots of a replica: as many sequences may stand still as decode, beside those being prefilled."""
    return 2 * max_num_seqs


class SlotInit(msgspec.Struct, frozen=True, array_like=True):
    """A sequence takes a slot (a row of the ranks' block table and token buffer) of its replica."""

    slot: int
    sampling: RowSampling
    processing: Processing | None = None  # of its logits, if a token is not all that is wanted of them


class TableUpdate(msgspec.Struct, frozen=True, array_like=True):
    """Entries `first ...` of a slot's block table become `blocks` (device block ids)."""

    slot: int
    first: int
    blocks: list[int]


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """One prompt's part of a forward: the ids of its tokens at positions `start ... start + len(tokens) - 1`.

    If `sample`, the logits of the last position are sampled, the token goes to the slot's row of the token buffer (on
    every first-stage rank) and back to the engine.
    """

    slot: int
    start: int
    tokens: list[int]
    sample: bool


class Decodes(msgspec.Struct, frozen=True, array_like=True):
    """A forward's sequences that decode: one token of each, and each is sampled. By column, since there may be a
    thousand in every step: int32 arrays as bytes.

    A token >= 0 is an id. A token < 0 is `~slot`: the last one sampled for that slot, which may still be in flight.
    """

    slots: bytes = b""
    positions: bytes = b""
    tokens: bytes = b""

    @classmethod
    def of(cls, slots: Any, positions: Any, tokens: Any) -> Decodes:
        """Of three sequences or arrays of integers."""
        return cls(*(np.asarray(column, dtype=np.int32).tobytes() for column in (slots, positions, tokens)))

    def columns(self) -> tuple[IntArray, IntArray, IntArray]:
        """Slots, positions and tokens, int32 `[len(self)]` each; read-only."""
        slots, positions, tokens = (np.frombuffer(x, np.int32) for x in (self.slots, self.positions, self.tokens))
        return slots, positions, tokens

    def __len__(self) -> int:
        return len(self.slots) // 4


NOBODY = Decodes()


class Forward(msgspec.Struct, frozen=True, tag="forward"):
    """Run the model in one replica of a layout: over sequences that decode, then over chunks of prompts.

    `inits` then `tables` are applied before. No slot comes twice. Tokens are reported in the same order.
    """

    id: int
    layout: int
    replica: int
    chunks: list[Chunk]
    tables: list[TableUpdate]
    inits: list[SlotInit]
    decodes: Decodes = NOBODY

    @property
    def num_tokens(self) -> int:
        return len(self.decodes) + sum(len(chunk.tokens) for chunk in self.chunks)

    @property
    def num_sequences(self) -> int:
        return len(self.decodes) + len(self.chunks)


class Swap(msgspec.Struct, frozen=True, tag="swap"):
    """Copy KV blocks between a replica's device pool and the host pool.

    `layout` says whose rectangles the device blocks hold, which need not be the current layout:
    resident sequences can be swapped at any time.
    """

    id: int
    layout: int
    replica: int
    to_host: bool
    device_blocks: list[int]
    host_blocks: list[int]


class Transition(msgspec.Struct, frozen=True, tag="transition"):
    """All ranks change their weights to another layout."""

    id: int
    layout: int


class Masks(msgspec.Struct, frozen=True, tag="masks"):
    """For the rank that samples a replica's forward `id`: which tokens its rows with a grammar may have.

    The forward was sent before; it waits for its masks before it samples. Not reported.
    """

    id: int
    layout: int
    replica: int
    num_rows: int
    rows: bytes  # uint32 `[num_rows, ceil(vocab / 32)]`: token i is bit `i % 32` of word `i // 32`


class AllocatePools(msgspec.Struct, frozen=True, tag="allocate"):
    """Start-up: the rank allocates its device pool, maps the host pool, times its steps, and answers `RankReady`.

    The count is the same on every rank: the least that any of them has room for.
    """

    num_device_blocks: int


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """The rank ends its loop and exits with 0."""


Command = Forward | Masks | Swap | Transition | AllocatePools | Shutdown


class Report(msgspec.Struct, frozen=True, tag="report"):
    """A rank completed a command. Only a replica's sampling rank fills `tokens` (one for each sequence that is
    sampled), `logprobs` (by place among these, of those that asked for them) and `prompts`."""

    rank: int
    id: int
    tokens: list[int] = []
    seconds: float = 0.0  # this rank was busy with the command, from when a step's inputs were there
    bytes: int = 0  # bytes this rank moved, of swaps and transitions
    logprobs: dict[int, TokenLogprobs] = {}
    prompts: list[PromptLogprobs] = []


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """A rank cannot go on. The engine ends with this message."""

    rank: int
    message: str
    is_config: bool = False  # the operator can fix it: exit code 2


class RankReady(msgspec.Struct, frozen=True, tag="ready"):
    """A rank finished a stage of start-up.

    `loaded`: groups are warm and weights in place, and `max_device_blocks` blocks would fit.
    `serving`: both pools are allocated and mapped, and what the rank does was timed; commands may come.
    """

    rank: int
    stage: str
    max_device_blocks: int = 0
    times: RankTimes | None = None


FromRank = Report | Failure | RankReady
