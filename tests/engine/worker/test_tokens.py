from __future__ import annotations

import torch

from seesaw.engine.parallel.groups import Pending
from seesaw.engine.worker.tokens import TokenBuffer

CPU = torch.device("cpu")


class Late(Pending):
    """Tokens that arrive when waited for; notes the order."""

    def __init__(self, tokens: list[int], waited: list[int]) -> None:
        self._tokens, self._waited = tokens, waited

    def wait(self) -> torch.Tensor:
        self._waited.append(self._tokens[0])
        return torch.tensor(self._tokens)


def buffer_with(*steps: tuple[list[int], list[int]], limit: int = 8) -> tuple[TokenBuffer, list[int]]:
    waited: list[int] = []
    buffer = TokenBuffer(4, limit, CPU)
    for slots, tokens in steps:
        buffer.expect(slots, Late(tokens, waited))
    return buffer, waited


def test_a_read_waits_for_its_step_and_no_later_one() -> None:
    buffer, waited = buffer_with(([0, 1], [10, 11]), ([2], [12]), ([3], [13]))
    assert buffer.read([2, 0]).tolist() == [12, 10]
    assert waited == [10, 12]
    assert buffer.read([1]).tolist() == [11]
    assert waited == [10, 12]  # nothing new to wait for


def test_the_newest_token_of_a_slot_wins() -> None:
    buffer, _ = buffer_with(([0], [10]), ([0], [20]), ([1], [30]))
    assert buffer.read([0]).tolist() == [20]


def test_a_former_owners_late_token_never_overwrites_the_new_owners() -> None:
    """Slot 0 goes from one sequence to another while the former's last step is still in flight."""
    buffer, waited = buffer_with(([0, 1], [66, 11]), ([1], [12]), ([0], [20]))
    assert buffer.read([0]).tolist() == [20]
    assert waited == [66, 12, 20]  # the stale one was written first
    buffer.drain()
    assert buffer.read([0, 1]).tolist() == [20, 12]


def test_a_written_token_is_newer_than_all_before() -> None:
    buffer, _ = buffer_with(([0, 1], [66, 11]))
    buffer.write([0], torch.tensor([20]))
    assert buffer.read([0, 1]).tolist() == [20, 11]


def test_tokens_that_nobody_reads_do_not_pile_up() -> None:
    buffer, waited = buffer_with(*(([0], [token]) for token in range(10)), limit=3)
    assert waited == [0, 1, 2, 3, 4, 5, 6]
    assert buffer.read([0]).tolist() == [9]


def test_drain_waits_for_all() -> None:
    buffer, waited = buffer_with(([0], [10]), ([1], [11]))
    buffer.drain()
    assert waited == [10, 11]
