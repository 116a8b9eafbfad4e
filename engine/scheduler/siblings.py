"""Continuations of one request on one replica: their prompt's blocks are counted once for all of them.

Used by the block manager: a thousand blocks of a prompt are not held a hundred times, one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from seesaw.engine.kv.blocks import BlockPool

if TYPE_CHECKING:
    from seesaw.engine.scheduler.sequence import Sequence


class Siblings:
    """The first that came has its blocks for itself; who comes while it is there borrows those of the prompt."""

    def __init__(self, first: Sequence) -> None:
        self.first = first
        self.blocks: list[int] = []  # held for the borrowers
        self._borrowers = 0

    def borrow(self, pool: BlockPool, count: int) -> list[int]:
        """The first `count` blocks, the same for all, until one `give_back` for each call."""
        if not self._borrowers:
            self.blocks = [pool.share(block) for block in self.first.device_blocks[:count]]
        self._borrowers += 1
        return self.blocks

    def give_back(self, pool: BlockPool) -> None:
        self._borrowers -= 1
        if not self._borrowers:
            pool.release(self.blocks)
            self.blocks = []
