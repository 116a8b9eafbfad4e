"""How a rank gets its weights in each layout of the plan: one class for each `EngineConfig.weights` mode.

The worker makes one of these after the store is filled, switches it to the first layout, and from then on
once per `Transition`. The tensors of a layout never change their addresses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from seesaw.engine.model.stage import StageWeights
from seesaw.engine.parallel.moves import Extent, moves
from seesaw.engine.weights.arena import Arena, copy_move, rank_arena
from seesaw.engine.weights.filling import fill
from seesaw.engine.weights.placement import weight_extents
from seesaw.engine.weights.source import Source
from seesaw.engine.weights.store import WeightStore

STORE = -1  # in moves, the store is a rank of its own that owns everything


class Weights(ABC):
    """A rank's weights in every layout. `current` is the index of the layout they are in, None before the first."""

    current: int | None = None

    @abstractmethod
    def stage(self, layout: int) -> StageWeights:
        """The rank's weights in a layout. Valid, and to be computed with, only while that layout is current."""

    @abstractmethod
    def switch(self, layout: int) -> int:
        """Make a layout current; returns the bytes copied. Nothing may be computing with the old one."""


class ArenaWeights(Weights):
    """An arena of its own for each layout, all on the rank's device, filled straight from the checkpoint.

    With one layout this is static serving; with several, a switch costs nothing. Neither needs a store.
    """

    current = 0

    def __init__(self, arenas: Sequence[Arena], source: Source, device: torch.device) -> None:
        """`arenas` by layout of the plan."""
        self._stages = []
        for arena in arenas:
            flat = torch.empty(arena.total_bytes, dtype=torch.uint8, device=device)
            fill(arena, flat, source)
            self._stages.append(arena.stage(flat))

    def stage(self, layout: int) -> StageWeights:
        return self._stages[layout]

    def switch(self, layout: int) -> int:
        self.current = layout
        return 0


class ReloadWeights(Weights):
    """One arena on the rank's device, big enough for any layout; each switch copies from the store into it."""

    def __init__(self, store: WeightStore, rank: int, device: torch.device, poison: bool = False) -> None:
        """`poison` (for tests) fills the arena with NaN before each reload, so that nothing stale can serve."""
        self._store, self._rank, self._poison = store, rank, poison
        shape, plan = store.arena.shape, store.plan
        self._arenas = [rank_arena(shape, plan, layout, rank) for layout in plan.layouts]
        self._flat = torch.empty(max(a.total_bytes for a in self._arenas), dtype=torch.uint8, device=device)
        self._stages = [arena.stage(self._flat) for arena in self._arenas]

    def stage(self, layout: int) -> StageWeights:
        if layout != self.current:
            raise ValueError(f"the weights are in layout {self.current}, not {layout}: switch first")
        return self._stages[layout]

    def switch(self, layout: int) -> int:
        if layout == self.current:
            return 0
        self.current = None
        if self._poison:
            self._flat.fill_(0xFF)  # NaN in every float type
        store, plan = self._store, self._store.plan
        whole = Extent(STORE, 0, store.arena.layers, store.arena.slices, writer=True)
        wanted = weight_extents(store.arena.shape, plan, plan.layouts[layout])[self._rank]
        copied_bytes = sum(
            copy_move(move, store.arena, store.flat, self._arenas[layout], self._flat)
            for move in moves([whole], [wanted])
        )
        if self._flat.is_cuda:
            torch.cuda.current_stream().synchronize()  # the copies out of pinned memory are asynchronous
        self.current = layout
        return copied_bytes
