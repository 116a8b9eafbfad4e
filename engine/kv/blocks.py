"""Block bookkeeping of one KV pool: who holds which block. Ids only; the bytes are elsewhere. No torch.

Owned by the scheduler: one pool for each replica's devices (a device block id names the same span on all of
the replica's ranks) and one for the host.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

from seesaw.engine.values.errors import IntegrityError, OutOfBlocksError


class BlockPool:
    """Reference-counted blocks `0 ... total - 1`, each of which is used, cached or free.

    A block may be published under a key that stands for its content (see `block_keys`); others find and share it. When
    its last holder releases it, it is cached: found as before, until someone needs a block and it is the least recently
    used. A block without a key is free.
    """

    def __init__(self, total: int, name: str, caches: bool = True) -> None:
        """`caches`: if not, blocks are found while somebody holds them, and never after."""
        self.total = total
        self.name = name
        self._caches = caches
        self._free = list(range(total - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # the least recently used first
        self._refs = [0] * total
        self._key_of: dict[int, Hashable] = {}
        self._by_key: dict[Hashable, int] = {}

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def available(self) -> int:
        """Blocks that can be allocated: the free ones and the cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def used(self) -> int:
        return self.total - self.available

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks with one reference each, cached ones last. Raises OutOfBlocksError: check `available`."""
        if count > self.available:
            raise OutOfBlocksError(
                f"{count} blocks of the {self.name} pool were asked for, {self.available} are available"
            )
        while len(self._free) < count:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
            self._free.append(block)
        if count == 0:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        for block in taken:
            self._refs[block] = 1
        return taken

    def share(self, block: int) -> int:
        """Take one more reference to a block that is used or cached; returns it."""
        if self._refs[block] == 0:
            if block not in self._cached:
                raise IntegrityError(f"block {block} of the {self.name} pool was shared while it was free")
            del self._cached[block]
        self._refs[block] += 1
        return block

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference to each of a sequence's blocks, given from its start on.

        Of those that are cached now the sequence's end is needed first by others: so whole prefixes outlast what
        follows them, and nothing is cached that cannot be found from its start on.
        """
        for block in reversed(blocks):
            if self._refs[block] < 1:
                raise IntegrityError(f"block {block} of the {self.name} pool was released twice")
            self._refs[block] -= 1
            if self._refs[block] == 0:
                if self._caches and block in self._key_of:
                    self._cached[block] = None
                else:
                    self._forget(block)
                    self._free.append(block)

    def publish(self, block: int, key: Hashable) -> None:
        """Let others find this (full, immutable) block by its content. The first block of a key stays the one found."""
        if key not in self._by_key and block not in self._key_of:
            self._by_key[key] = block
            self._key_of[block] = key

    def find(self, key: Hashable) -> int | None:
        """A block with this content, used or cached; `share` it to keep it."""
        return self._by_key.get(key)

    def num_cached(self, blocks: Iterable[int]) -> int:
        """How many of these are cached: sharing them leaves so many fewer available."""
        return sum(self._refs[block] == 0 for block in blocks)

    def taking(self, total: int, shared: Sequence[int]) -> int:
        """By how many fewer are available once somebody holds `total` blocks, of which it shares these."""
        return total - len(shared) + self.num_cached(shared)

    def reset(self) -> None:
        """Nothing is found any more that was published before."""
        self._key_of.clear()
        self._by_key.clear()
        self._free += self._cached
        self._cached.clear()

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._by_key[key]

    def check(self, holders: Iterable[Iterable[int]]) -> None:
        """Raise IntegrityError unless references, cached and free blocks add up to exactly what `holders` hold."""
        expected = [0] * self.total
        for blocks in holders:
            for block in blocks:
                expected[block] += 1
        free = set(self._free)
        if len(free) != len(self._free):
            raise IntegrityError(f"the {self.name} pool lists a free block twice")
        for block, refs in enumerate(self._refs):
            if refs != expected[block]:
                raise IntegrityError(
                    f"block {block} of the {self.name} pool has {refs} references but {expected[block]} holders"
                )
            if (refs > 0) + (block in free) + (block in self._cached) != 1:
                raise IntegrityError(f"block {block} of the {self.name} pool is not one of used, cached and free")
            if block in self._cached and self._by_key.get(self._key_of.get(block)) != block:
                raise IntegrityError(f"block {block} of the {self.name} pool is cached, but nobody would find it")


def block_keys(tokens: Sequence[int], block_size: int, before: bytes = b"") -> list[bytes]:
    """A content key for each full block: equal keys mean equal tokens from the start to the block's end.

    `before` is the key of the block before the first, or `salt_key` at the start. Keys are cryptographic digests, so
    that no client can build a prompt that finds another's blocks.
    """
    keys: list[bytes] = []
    for end in range(block_size, len(tokens) + 1, block_size):
        block = array("q", tokens[end - block_size : end]).tobytes()
        before = hashlib.blake2b(before + block, digest_size=16).digest()
        keys.append(before)
    return keys


def salt_key(salt: str) -> bytes:
    """What the keys of requests begin with that share prefixes among themselves alone."""
    if not salt:
        return b""
    return hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=16, person=b"cache_salt").digest()
