"""The block pool: references, sharing by content, and exact bookkeeping."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kv.blocks import BlockPool, block_keys
from engine.values.errors import IntegrityError, OutOfBlocksError


@given(total=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_references_always_add_up(total: int, seed: int) -> None:
    rng = random.Random(seed)
    pool = BlockPool(total, "test")
    holders: list[list[int]] = []
    for step in range(60):
        match rng.randrange(4):
            case 0:
                count = rng.randint(0, total)
                if count > pool.free:
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
                pool.publish(holders[-1][0], ("key", step))
        pool.check(holders)
        assert pool.free + pool.used == total
        assert pool.used == len({block for blocks in holders for block in blocks})
    for blocks in holders:
        pool.release(blocks)
    pool.check([])
    assert pool.free == total


def test_content_is_found_while_somebody_holds_it() -> None:
    pool = BlockPool(3, "test")
    [block] = pool.allocate(1)
    pool.publish(block, "a")
    assert pool.find("a") == block and pool.find("b") is None
    pool.share(block)
    pool.release([block])
    assert pool.find("a") == block
    pool.release([block])
    assert pool.find("a") is None
    [again] = pool.allocate(1)
    assert pool.find("a") is None
    pool.publish(again, "b")
    other = pool.allocate(1)[0]
    pool.publish(other, "b")
    assert pool.find("b") == again


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
