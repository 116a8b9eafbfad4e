from __future__ import annotations

import pytest

from seesaw.engine.sampling.params import RowSampling
from seesaw.engine.wire.commands import Chunk, Forward, SlotInit, TableUpdate
from seesaw.engine.worker.slots import SlotTable
from tests.engine.forwards import make_forward

GREEDY = RowSampling(0.0, 1.0, 0, 0.0, 0)
WARM = RowSampling(1.0, 1.0, 0, 0.0, 5)


def forward(tables: list[TableUpdate], inits: list[SlotInit] | None = None) -> Forward:
    return Forward(1, 0, 0, [], tables, inits or [])


def test_tables_grow_and_batches_are_cut_to_the_longest() -> None:
    slots = SlotTable(num_slots=3, max_blocks=8, num_device_blocks=20, block_size=4)
    slots.update(forward([TableUpdate(2, 0, [5, 6]), TableUpdate(0, 0, [7])]))
    slots.update(forward([TableUpdate(2, 2, [19])]))
    batch = slots.rows(make_forward(2, 0, [Chunk(2, 8, [~2], True), Chunk(0, 0, [1, 2, 3], True)])).batch
    assert batch.query_lens.tolist() == [1, 3]
    assert batch.context_lens.tolist() == [9, 3]
    assert batch.tables.tolist()[0] == [5, 6, 19]
    assert batch.tables.tolist()[1][0] == 7
    assert batch.tables.shape == (2, 3)


def test_rows_are_those_that_decode_and_then_the_prompts() -> None:
    slots = SlotTable(num_slots=6, max_blocks=8, num_device_blocks=20, block_size=4)
    chunks = [Chunk(0, 4, [7, 8, 9], False), Chunk(4, 0, [5], True), Chunk(1, 9, [3, 4], True)]
    rows = slots.rows(make_forward(1, 0, [Chunk(5, 8, [~5], True), Chunk(2, 11, [42], True), *chunks]))
    assert rows.tokens.tolist() == [~5, 42, 7, 8, 9, 5, 3, 4]
    assert rows.batch.query_lens.tolist() == [1, 1, 3, 1, 2]
    assert rows.batch.context_lens.tolist() == [9, 12, 7, 1, 11]
    assert rows.sampled == [0, 1, 5, 7]
    assert rows.slots == [5, 2, 4, 1]
    assert rows.positions == [9, 12, 1, 11]


def test_sampling_follows_the_slots_latest_owner() -> None:
    slots = SlotTable(3, 8, 20, 4)
    slots.update(forward([], [SlotInit(0, GREEDY), SlotInit(1, WARM)]))
    slots.update(forward([], [SlotInit(0, WARM)]))
    assert slots.sampling([1, 0]) == [WARM, WARM]
    with pytest.raises(ValueError, match="no sequence has taken"):
        slots.sampling([2])


@pytest.mark.parametrize("blocks", [[3, 20], [-1]])
def test_blocks_that_are_not_there_are_refused(blocks: list[int]) -> None:
    with pytest.raises(IndexError, match="the device pool has 20"):
        SlotTable(3, 8, 20, 4).update(forward([TableUpdate(0, 0, blocks)]))
