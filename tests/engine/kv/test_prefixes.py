"""How much of a prompt is there, and how much can be expected to be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from seesaw.engine.kv.blocks import BlockPool, block_keys
from seesaw.engine.kv.prefixes import LivePrefixes, Prefix, longest


def test_a_prefix_ends_where_the_first_block_is_missing() -> None:
    pool = BlockPool(8, "test")
    keys = block_keys(list(range(40)), 8)
    blocks = pool.allocate(5)
    for place in (0, 1, 3):
        pool.publish(blocks[place], keys[place])
    assert longest(pool.find, keys) == blocks[:2]
    assert longest(pool.find, keys[2:]) == [] and longest(pool.find, []) == []


def test_what_the_host_alone_has() -> None:
    assert Prefix([1, 2], [5, 6, 7]).beyond_device == 1
    assert Prefix([1, 2], [5]).beyond_device == 0


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=8), shared=st.integers(0, 60))
def test_what_others_will_have_computed_is_never_overrated(lengths: list[int], shared: int) -> None:
    """Of prompts that share their start; and once all of them have gone, nothing is expected."""
    live = LivePrefixes()
    prompts = [block_keys([7] * min(shared, n) + [100 + i] * (n - min(shared, n)), 1) for i, n in enumerate(lengths)]
    *others, mine = prompts
    for index, keys in enumerate(others):
        live.add(str(index), keys)
    common = max((sum(a == b for a, b in zip(keys, mine, strict=False)) for keys in others), default=0)
    expected = live.expected_blocks(mine, lambda key: False)
    assert expected <= common and (common < 8 or expected > common - 8)
    assert live.expected_blocks(mine, lambda key: True) > len(mine) - 8
    for index in range(len(others)):
        live.remove(str(index))
    assert live.expected_blocks(mine, lambda key: False) == 0
