"""Layouts: how a world of ranks is divided into replicas, pipeline stages and tensor shards.

A layout is a value that is passed, never a global: a process holds the groups, views and extents of
several layouts at once. Written as in the paper (arXiv 2503.06433): `P4`, `T4`, `T2P2`, `D2P4`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.wording import count


class Coord(NamedTuple):
    """A rank's place in a layout."""

    replica: int
    stage: int
    shard: int


@dataclass(frozen=True)
class Layout:
    """`dp` replicas of `pp` pipeline stages of `tp` tensor shards.

    Ranks are numbered replica-major, then stage, then shard, so that a replica is the same set of
    ranks in every layout with the same `dp` and world size.
    """

    dp: int = 1
    pp: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        if min(self.dp, self.pp, self.tp) < 1:
            raise ConfigError(f"layout degrees must be at least 1, got dp={self.dp} pp={self.pp} tp={self.tp}")

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read `T4`, `P4`, `T2P2`, `D2T2P2`, ... (any order of letters, any case; `1` is T1)."""
        degrees: dict[str, int] = {}
        compact = text.strip().upper()
        if not re.fullmatch(r"([DTP][1-9]\d*)+", compact):
            raise ConfigError(
                f"layout {text!r} is not understood: write degrees as in T4, P4, T2P2 or D2T2 "
                "(D = data, T = tensor, P = pipeline parallel)"
            )
        for letter, degree in re.findall(r"([DTP])(\d+)", compact):
            if letter in degrees:
                raise ConfigError(f"layout {text!r} names {letter} twice: write each of D, T, P at most once")
            degrees[letter] = int(degree)
        return cls(dp=degrees.get("D", 1), pp=degrees.get("P", 1), tp=degrees.get("T", 1))

    def __str__(self) -> str:
        parts = [f"{letter}{n}" for letter, n in (("D", self.dp), ("T", self.tp), ("P", self.pp)) if n > 1]
        return "".join(parts) or "T1"

    @property
    def world_size(self) -> int:
        return self.dp * self.pp * self.tp

    @property
    def ranks_per_replica(self) -> int:
        return self.pp * self.tp

    @property
    def max_in_flight(self) -> int:
        """Forwards that a replica has at most at once: one in each stage, and one that waits for the first."""
        return self.pp + 1

    def coord(self, rank: int) -> Coord:
        replica, rest = divmod(rank, self.ranks_per_replica)
        stage, shard = divmod(rest, self.tp)
        return Coord(replica, stage, shard)

    def rank(self, replica: int, stage: int, shard: int) -> int:
        return (replica * self.pp + stage) * self.tp + shard

    def coords(self) -> Iterator[tuple[int, Coord]]:
        """All (rank, coordinates), by rank."""
        return ((rank, self.coord(rank)) for rank in range(self.world_size))

    def replica_ranks(self, replica: int) -> range:
        first = replica * self.ranks_per_replica
        return range(first, first + self.ranks_per_replica)

    def stage_ranks(self, replica: int, stage: int) -> range:
        """The tensor-parallel group of one stage."""
        first = self.rank(replica, stage, 0)
        return range(first, first + self.tp)

    def sampling_rank(self, replica: int) -> int:
        """First shard of the last stage: the one rank of a replica that samples and returns tokens."""
        return self.rank(replica, self.pp - 1, 0)


@dataclass(frozen=True)
class Plan:
    """The layouts an engine may be in. Equal prefill and decode layouts and no tail: static serving."""

    prefill: Layout
    decode: Layout
    tail: Layout | None = None

    def __post_init__(self) -> None:
        for name, other in (("decode", self.decode), ("tail", self.tail)):
            if other is not None and other.world_size != self.prefill.world_size:
                raise ConfigError(
                    f"prefill layout {self.prefill} uses {count(self.prefill.world_size, 'device')} but {name} layout "
                    f"{other} uses {other.world_size}: choose layouts of one world size"
                    f"{'; a prefill layout that is not given is T1' if self.prefill == Layout() else ''}"
                )

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """The distinct layouts; commands name a layout by its index here."""
        named = [self.prefill, self.decode] + ([self.tail] if self.tail else [])
        return tuple(dict.fromkeys(named))

    @cached_property
    def _indices(self) -> dict[Layout, int]:
        return {layout: index for index, layout in enumerate(self.layouts)}

    def index(self, layout: Layout) -> int:
        return self._indices[layout]

    @property
    def first(self) -> Layout:
        """The layout that an engine starts in: where it decodes, so that a short queue never changes it."""
        return self.decode

    @property
    def world_size(self) -> int:
        return self.prefill.world_size

    @property
    def is_static(self) -> bool:
        return len(self.layouts) == 1

    def __str__(self) -> str:
        if self.is_static:
            return str(self.prefill)
        return f"{self.prefill}->{self.decode}" + (f"->{self.tail}" if self.tail else "")
