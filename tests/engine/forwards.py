"""Forwards one sequence at a time: as chunks, decoding sequences among them, with `~slot` for a token on its way."""

from __future__ import annotations

from collections.abc import Sequence

from seesaw.engine.wire.commands import Chunk, Decodes, Forward, SlotInit, TableUpdate


def parts(forward: Forward) -> list[Chunk]:
    """All that a forward computes, in its order."""
    columns = (column.tolist() for column in forward.decodes.columns())
    decodes = [Chunk(slot, position, [token], True) for slot, position, token in zip(*columns, strict=True)]
    return decodes + forward.chunks


def make_forward(
    id: int,
    layout: int,
    parts: Sequence[Chunk],
    tables: list[TableUpdate] | None = None,
    inits: list[SlotInit] | None = None,
    replica: int = 0,
) -> Forward:
    """The forward of these parts. Single tokens that are sampled, not at the start, decode; they come first."""
    decodes = [part for part in parts if part.start and part.sample and len(part.tokens) == 1]
    assert list(parts[: len(decodes)]) == decodes, "who decodes comes before chunks of prompts"
    columns = ([part.slot for part in decodes], [part.start for part in decodes], [part.tokens[0] for part in decodes])
    chunks = list(parts[len(decodes) :])
    return Forward(id, layout, replica, chunks, tables or [], inits or [], Decodes.of(*columns))
