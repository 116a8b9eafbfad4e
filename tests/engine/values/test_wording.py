"""Numbers as messages write them, which the flags must take back."""

from __future__ import annotations

import pytest

from seesaw.engine.values.wording import as_size, at_least, count, parse_bytes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("num_bytes", "size", "flag"),
    [
        (100, "100 bytes", "1KiB"),
        (3 << 20, "3.0 MiB", "3MiB"),
        ((3 << 20) + 1, "3.0 MiB", "4MiB"),
        (GIB + GIB // 2, "1.50 GiB", "1536MiB"),
        (4 * GIB, "4.00 GiB", "4GiB"),
        (905 * GIB + 1, "905.00 GiB", "906GiB"),
    ],
)
def test_sizes(num_bytes: int, size: str, flag: str) -> None:
    assert (as_size(num_bytes), at_least(num_bytes)) == (size, flag)
    assert parse_bytes(flag) >= num_bytes


def test_nouns_agree_with_their_count() -> None:
    assert [count(number, "device") for number in (0, 1, 2)] == ["0 devices", "1 device", "2 devices"]
