from __future__ import annotations

from itertools import pairwise

import pytest

from seesaw.engine.worker.graphs import buckets


@pytest.mark.parametrize("max_rows", [1, 3, 8, 65, 256, 1000, 1024])
def test_some_bucket_holds_every_batch(max_rows: int) -> None:
    sizes = buckets(max_rows)
    assert sizes == sorted(set(sizes)) and sizes[-1] >= max_rows
    assert len(sizes) == 1 or sizes[-2] < max_rows  # and none is captured for nothing


def test_padding_is_at_most_an_eighth_beyond_64() -> None:
    sizes = [size for size in buckets(4096) if size >= 64]
    assert all(large - small <= small / 8 for small, large in pairwise(sizes))
