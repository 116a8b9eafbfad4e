"""Which steps a worker rehearses."""

from __future__ import annotations

import pytest

from seesaw.engine.worker.worker import rehearsed_sizes


@pytest.mark.parametrize(("most", "sizes"), [(8192, [8192, 64, 1]), (64, [64, 1]), (16, [16, 1]), (1, [1])])
def test_no_rehearsed_step_is_larger_than_a_step_may_be(most: int, sizes: list[int]) -> None:
    assert rehearsed_sizes(most) == sizes
