"""Block bookkeeping of one KV pool: who holds which block. Ids only; the bytes are elsewhere. No torch.

Owned by the scheduler: one pool for each replica's devices (a device block id names the same span on all of
the replica's ranks) and one for the host.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Hashable, Iterable, Sequence

from engine.values.errors import IntegrityError, OutOfBlocksError


class BlockPool:
    """Reference-counted blocks `0 ... total - 1`.

    A block may be published under a key that stands for its content (see `block_keys`); others find and share
    it while anybody holds it. When the last holder releases a block its key is forgotten.
    """

    def __init__(self, total: int, name: str) -> None:
        self.total = total
        self.name = name
        self._free = list(range(total - 1, -1, -1))
        self._refs = [0] * total
        self._key_of: dict[int, Hashable] = {}
        self._by_key: dict[Hashable, int] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks with one reference each. Raises OutOfBlocksError: check `free` first."""
        if count > len(self._free):
            raise OutOfBlocksError(f"{count} blocks of the {self.name} pool were asked for, {self.free} are free")
        if count == 0:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        for block in taken:
            self._refs[block] = 1
        return taken

    def share(self, block: int) -> int:
        """Take one more reference to a block somebody holds; returns it."""
        if self._refs[block] < 1:
            raise IntegrityError(f"block {block} of the {self.name} pool was shared while nobody held it")
        self._refs[block] += 1
        return block

    def release(self, blocks: Iterable[int]) -> None:
        """Give back one reference to each block. A block without references is free and loses its key."""
        for block in blocks:
            if self._refs[block] < 1:
                raise IntegrityError(f"block {block} of the {self.name} pool was released twice")
            self._refs[block] -= 1
            if self._refs[block] == 0:
                self._free.append(block)
                key = self._key_of.pop(block, None)
                if key is not None:
                    del self._by_key[key]

    def publish(self, block: int, key: Hashable) -> None:
        """Let others find this (full, immutable) block by its content. The first block of a key stays the one found."""
        if key not in self._by_key and block not in self._key_of:
            self._by_key[key] = block
            self._key_of[block] = key

    def find(self, key: Hashable) -> int | None:
        """A block with this content that somebody holds; `share` it to keep it."""
        return self._by_key.get(key)

    def check(self, holders: Iterable[Iterable[int]]) -> None:
        """Raise IntegrityError unless references and free blocks add up to exactly what `holders` hold."""
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
            if (refs == 0) != (block in free):
                raise IntegrityError(f"block {block} of the {self.name} pool is both held and free, or neither")


def block_keys(tokens: Sequence[int], block_size: int) -> list[bytes]:
    """A content key for each full block of a prompt: equal keys mean equal tokens from the start to the block's end.

    Keys are cryptographic digests, so that no client can build a prompt that finds another's blocks.
    """
    keys: list[bytes] = []
    digest = hashlib.blake2b(digest_size=16)
    for end in range(block_size, len(tokens) + 1, block_size):
        digest.update(array("q", tokens[end - block_size : end]).tobytes())
        keys.append(digest.copy().digest())
    return keys
