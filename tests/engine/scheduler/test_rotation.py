"""The columns of decoding sequences, against what each sequence says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from seesaw.engine.core import Core
from seesaw.engine.sampling.params import RowSampling, SamplingParams
from seesaw.engine.scheduler.rotation import MAX_PENDING_TOKENS, Rotation
from seesaw.engine.scheduler.sequence import Sequence
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.messages import Add, FinishReason
from tests.engine.scheduler.symbolic import SymbolicExecutor, reference

BLOCK = 4
GREEDY = RowSampling(0.0, 1.0, 0, 0.0, 0)


def resident(slot: int, prompt: int, max_tokens: int = 50, **params: int) -> Sequence:
    """A sequence in a slot, whose prompt went out but for its last token."""
    seq = Sequence(
        request_id=str(slot),
        index=0,
        arrival=slot,
        arrived_s=0.0,
        prompt=[100 + slot] * prompt,
        max_tokens=max_tokens,
        params=SamplingParams(max_tokens=max_tokens, **params),
        stops=frozenset({7}),
        row=GREEDY,
        keys=[],
    )
    seq.occupy(0, 0, slot, list(range(-(-prompt // BLOCK))))
    seq.begin_prefill(0)
    if prompt > 1:
        seq.dispatch(prompt - 1, turn=1)
    return seq


def rotation_of(*sequences: Sequence) -> Rotation:
    rotation = Rotation(num_slots=16, block_size=BLOCK)
    for seq in sequences:
        rotation.join(seq)
    return rotation


def slots(rotation: Rotation, *sequences: Sequence) -> np.ndarray:
    return np.array([seq.slot for seq in sequences])


def test_tokens_go_out_as_ids_until_one_is_on_its_way() -> None:
    a, b = resident(3, 5), resident(9, 8)
    rotation = rotation_of(a, b)
    first = rotation.dispatch(rotation.due(2, pp=1), turn=2)
    assert (first.slots.tolist(), first.positions.tolist(), first.tokens.tolist()) == ([3, 9], [4, 7], [103, 109])
    assert [(seq.dispatched, seq.pending, seq.turn) for seq in (a, b)] == [(5, 1, 2), (8, 1, 2)]
    second = rotation.dispatch(rotation.due(3, pp=1), turn=3)
    assert second.tokens.tolist() == [~3, ~9]
    assert len(rotation.due(4, pp=1)) == 0, "a sequence runs ahead of its tokens by no more than allowed"
    assert MAX_PENDING_TOKENS == a.pending == 2
    assert rotation.context_tokens == a.dispatched + b.dispatched == 15


def test_a_token_taken_is_the_next_input() -> None:
    a, b = resident(0, 3), resident(1, 3)
    rotation = rotation_of(a, b)
    sent = rotation.dispatch(rotation.due(1, pp=1), turn=1)
    for seq, token in zip((a, b), (42, 43), strict=True):
        seq.output.append(token)
    live, last = rotation.take(sent.slots, [42, 43])
    assert live.tolist() == [True, True] and last.tolist() == [False, False]
    assert rotation.dispatch(rotation.due(2, pp=1), turn=2).tokens.tolist() == [42, 43]


def test_in_a_pipeline_a_token_is_waited_for() -> None:
    a, b = resident(0, 3), resident(1, 3)
    rotation = rotation_of(a, b)
    rotation.dispatch(slots(rotation, a), turn=10)
    assert rotation.due(13, pp=4).tolist() == [1]
    assert rotation.due(14, pp=4).tolist() == [1, 0], "whoever went out is last in line"
    rotation.dispatch(slots(rotation, b), turn=11)
    assert rotation.first_turn(pp=4) == 14


def test_who_leaves_takes_along_how_far_it_came() -> None:
    a, b = resident(0, 3), resident(1, 6)
    rotation = rotation_of(a, b)
    rotation.dispatch(rotation.due(5, pp=1), turn=5)
    rotation.rows.step[[0, 1]] = 77
    rotation.leave(a)
    assert a not in rotation and b in rotation and list(rotation) == [b]
    assert (a.dispatched, a.turn, a.step, a.pending) == (3, 5, 77, 1)
    assert rotation.context_tokens == b.dispatched == 6


def test_the_last_token_by_length_is_known_when_it_goes_out_and_when_it_comes() -> None:
    a, b = resident(0, 3, max_tokens=2), resident(1, 3, max_tokens=9, ends_after=1)
    rotation = rotation_of(a, b)
    first = rotation.dispatch(rotation.due(1, pp=1), turn=1)
    second = rotation.dispatch(rotation.due(2, pp=1), turn=2)
    assert first.spent == [] and second.spent == [a], "nothing can count on ends_after"
    for sent, expected in ((first, [False, True]), (second, [True, True])):
        live, last = rotation.take(sent.slots, [5, 5])
        assert live.all() and last.tolist() == expected
    b.output.append(5)
    assert b.end() == (FinishReason.LENGTH, None)
    a.output.append(7)
    assert a.end() == (FinishReason.STOP, 7)


def test_nobody_wants_what_comes_after_the_end() -> None:
    a, b = resident(0, 3), resident(1, 3)
    rotation = rotation_of(a, b)
    sent = rotation.dispatch(rotation.due(1, pp=1), turn=1)
    rotation.leave(a)
    rotation.close(a.slot)
    live, _ = rotation.take(sent.slots, [5, 5])
    assert live.tolist() == [False, True]
    rotation.join(resident(0, 3))
    assert rotation.rows.is_live[0], "the slot is another's now"


def test_a_sequence_is_kept_no_longer_than_its_slot() -> None:
    seq = resident(3, 5)
    rotation = rotation_of(seq)
    rotation.leave(seq)
    assert rotation.of(np.array([3])) == [seq], "its last tokens may be on their way"
    rotation.forget(3)
    assert rotation.of(np.array([3])) == [None]


@pytest.mark.parametrize(("prompt", "grows"), [(4, False), (5, True), (8, False)])
def test_a_block_is_needed_where_the_last_one_is_full(prompt: int, grows: bool) -> None:
    seq = resident(2, prompt)
    seq.device_blocks = seq.device_blocks[: (prompt - 1) // BLOCK] if grows else seq.device_blocks
    rotation = rotation_of(seq)
    assert rotation.full(rotation.due(1, pp=1)).tolist() == ([2] if grows else [])
    if grows:
        seq.grow(30)
        rotation.grew([seq])
        assert len(rotation.full(rotation.due(1, pp=1))) == 0


def test_what_is_left_to_decode() -> None:
    a, b = resident(0, 3, max_tokens=10), resident(1, 3, max_tokens=4)
    rotation = rotation_of(a, b)
    assert rotation.left_tokens() == a.left + b.left == 14
    rotation.dispatch(rotation.due(1, pp=1), turn=1)
    assert rotation.left_tokens() == a.left + b.left == 12


def symbolic_core(prefill: str, num_device_blocks: int, max_model_len: int) -> Core:
    config = EngineConfig(
        prefill=prefill,
        block_size=4,
        max_model_len=max_model_len,
        num_device_blocks=num_device_blocks,
        num_host_blocks=4,
        max_num_seqs=8,
        max_num_batched_tokens=16,
    )
    return Core(config, SymbolicExecutor(config))


def test_who_leaves_before_its_first_token_came_waits_for_it() -> None:
    """With the step that ends its prompt it joins those that decode; that very step is what it must wait for."""
    core = symbolic_core("P2", num_device_blocks=4, max_model_len=16)
    got: dict[str, list[int]] = {}
    for i in range(3):
        core.add(Add(f"r{i}", [i] * 4, SamplingParams(max_tokens=8, temperature=0.0)))
    while not core.is_idle:
        for output in core.turn():
            got.setdefault(output.id, []).extend(output.tokens)
    assert core.stats().preemptions > 0
    assert got == {f"r{i}": reference([i] * 4, 8) for i in range(3)}


def test_an_abort_frees_nothing_that_a_step_in_flight_names() -> None:
    core = symbolic_core("P4", num_device_blocks=40, max_model_len=64)
    for i in range(4):
        core.add(Add(f"r{i}", [i] * 16, SamplingParams(max_tokens=8, temperature=0.0)))
    core.turn()
    used = core.stats().device_blocks_used
    for i in range(4):
        core.abort(f"r{i}")
    assert core.stats().device_blocks_used == used > 0
    while not core.is_idle:
        assert not list(core.turn())
    assert core.stats().device_blocks_used == 0
