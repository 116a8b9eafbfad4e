"""The block pool: references, finding by content, what is needed first, and exact bookkeeping."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.engine.kv.blocks import BlockPool, block_keys, salt_key
from seesaw.engine.values.errors import IntegrityError, OutOfBlocksError


@pytest.mark.parametrize("caches", [True, False])
@given(total=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_used_cached_and_free_always_add_up(caches: bool, total: int, seed: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(total, "test", caches)
    holders: list[list[int]] = []
    for _ in range(60):
        match rng.randrange(6):
            case 0:
                count = rng.randint(0, total)
                if count > pool.available:
                    with pytest.raises(OutOfBlocksError):
                        pool.allocate(count)
                else:
                    holders.append(pool.allocate(count))
                    assert len(set(holders[-1])) == count
            case 1 if holders:
                holders.append([pool.share(block) for block in rng.choice(holders)])
            case 2 if holders:
                pool.release(holders.pop(rng.randrange(len(holders))))
            case 3 if holders and holders[-1]:
                pool.publish(rng.choice(holders[-1]), ("key", rng.randrange(9)))
            case 4:
                found = pool.find(("key", rng.randrange(9)))
                if found is not None:
                    available, cached = pool.available, pool.num_cached([found])
                    holders.append([pool.share(found)])
                    assert pool.available == available - cached
            case 5 if rng.random() < 0.2:
                pool.reset()
                assert pool.cached == 0 and all(pool.find(("key", n)) is None for n in range(9))
        pool.check(holders)
        assert pool.used == len({block for blocks in holders for block in blocks})
        assert pool.used + pool.available == total and pool.cached <= (pool.available if caches else 0)
    for blocks in holders:
        pool.release(blocks)
    pool.check([])
    assert pool.available == total


def test_content_is_found_until_its_block_is_needed() -> None:
    pool = BlockPool(3, "test")
    [block] = pool.allocate(1)
    pool.publish(block, "a")
    assert pool.find("a") == block and pool.find("b") is None
    pool.share(block)
    pool.release([block])
    pool.release([block])
    assert pool.find("a") == block and pool.cached == 1
    others = pool.allocate(2)  # the free ones
    assert block not in others and pool.find("a") == block
    assert pool.allocate(1) == [block]
    assert pool.find("a") is None and pool.cached == 0


def test_without_a_cache_content_is_found_while_somebody_holds_it() -> None:
    pool = BlockPool(3, "test", caches=False)
    [block] = pool.allocate(1)
    pool.publish(block, "a")
    pool.share(block)
    pool.release([block])
    assert pool.find("a") == block
    pool.release([block])
    assert pool.find("a") is None and pool.cached == 0
    [again] = pool.allocate(1)
    pool.publish(again, "b")
    other = pool.allocate(1)[0]
    pool.publish(other, "b")
    assert pool.find("b") == again


def test_a_sequence_s_end_is_needed_before_its_start_and_the_older_before_the_newer() -> None:
    pool = BlockPool(6, "test")

    def compute(name: str, start: list[int], count: int) -> list[int]:
        blocks = [pool.share(block) for block in start] + pool.allocate(count)
        for place, block in enumerate(blocks):
            pool.publish(block, (name, place))
        return blocks

    old = compute("old", [], 3)
    new = compute("new", old[:1], 2)
    pool.release(old)
    pool.release(new)
    assert pool.cached == 5 and pool.find(("old", 2)) == old[2]
    order = [pool.allocate(1)[0] for _ in range(6)][1:]  # the first one was free
    assert order == [old[2], old[1], new[2], new[1], old[0]]


def test_mistakes_are_raised() -> None:
    pool = BlockPool(2, "test")
    [block] = pool.allocate(1)
    pool.release([block])
    with pytest.raises(IntegrityError):
        pool.release([block])
    with pytest.raises(IntegrityError):
        pool.share(block)
    leaked = pool.allocate(1)
    with pytest.raises(IntegrityError, match="1 references but 0 holders"):
        pool.check([])
    pool.check([leaked])


def test_keys_stand_for_everything_up_to_their_block() -> None:
    tokens = list(range(40))
    keys = block_keys(tokens, 16)
    assert len(keys) == 2 and len(set(keys)) == 2
    assert block_keys(tokens[:16], 16) == keys[:1]
    changed = [99, *tokens[1:]]
    assert not set(block_keys(changed, 16)) & set(keys)
    assert block_keys([1] * 15, 16) == []
    assert block_keys(tokens[16:], 16, keys[0]) == keys[1:]


def test_keys_of_one_salt_are_nobody_else_s() -> None:
    salts = ["", "a", "b", "\ud800"]
    assert len({block_keys([1] * 16, 16, salt_key(salt))[0] for salt in salts}) == len(salts)
