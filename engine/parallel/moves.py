"""One rule for all re-sharding: a layout maps a rank to an extent; what moves is where extents intersect.

Weights and KV are both indexed by (layer, slice). `extents` says what each rank of a layout owns along an
axis, `moves` what must travel so that every rank of another layout owns its own. Weight reload, swap-out
and swap-in are all read off these; no pair of layouts is a special case.

Layers here are whatever the axis counts: decoder layers for KV, and for weights the decoder layers with the
embedding before and the head behind (`weight_layers`), so that both ends are layers too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from seesaw.engine.parallel.layout import Layout


@dataclass(frozen=True)
class Span:
    """A half-open range `[start, stop)`."""

    start: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __and__(self, other: Span) -> Span:
        start = max(self.start, other.start)
        return Span(start, max(start, min(self.stop, other.stop)))

    def within(self, base: int) -> slice:
        """As a slice relative to `base`, for indexing a tensor whose first entry is entry `base`."""
        return slice(self.start - base, self.stop - base)


@dataclass(frozen=True)
class Axis:
    """What is cut across the shards of a stage: `size` slices (KV heads, weight slices, vocabulary slices).

    With more shards than slices, neighbouring shards hold copies of one slice and the first of them is its
    writer. `size` 1 is a replicated tensor.
    """

    name: str
    size: int

    def span(self, shard: int, tp: int) -> Span:
        if tp >= self.size:
            first = shard * self.size // tp
            return Span(first, first + 1)
        each = self.size // tp
        return Span(shard * each, (shard + 1) * each)

    def is_writer(self, shard: int, tp: int) -> bool:
        """Whether this shard is the one that writes its slices where they are shared."""
        return tp <= self.size or shard % (tp // self.size) == 0


@dataclass(frozen=True)
class Extent:
    """The rectangle (layers x slices) that a rank owns in a layout. `node` is the host it lives on."""

    rank: int
    replica: int
    layers: Span
    slices: Span
    writer: bool
    node: int = 0

    @property
    def size(self) -> int:
        return len(self.layers) * len(self.slices)


@dataclass(frozen=True)
class Move:
    """`src` sends this rectangle to `dst` (ranks; equal ranks keep it)."""

    src: int
    dst: int
    layers: Span
    slices: Span


def stage_layers(num_layers: int, pp: int) -> list[Span]:
    """Decoder layers of each stage. Extra layers go to the middle stages first, then to the first one:
    the first stage also embeds and the last also runs the head."""
    each, extra = divmod(num_layers, pp)
    by_preference = [*range(1, pp - 1), 0, pp - 1]
    favoured = set(by_preference[:extra])
    spans, start = [], 0
    for stage in range(pp):
        stop = start + each + (stage in favoured)
        spans.append(Span(start, stop))
        start = stop
    return spans


def weight_layers(num_layers: int, pp: int) -> list[Span]:
    """As `stage_layers`, with layer 0 the embedding, 1..n the decoder layers and n + 1 norm and head."""
    spans = [Span(span.start + 1, span.stop + 1) for span in stage_layers(num_layers, pp)]
    spans[0] = Span(0, spans[0].stop)
    spans[-1] = Span(spans[-1].start, num_layers + 2)
    return spans


def extents(layout: Layout, stages: list[Span], axis: Axis) -> list[Extent]:
    """What each rank of the layout owns, by rank. `stages` are the layers of each of its stages."""
    return [
        Extent(
            rank=rank,
            replica=coord.replica,
            layers=stages[coord.stage],
            slices=axis.span(coord.shard, layout.tp),
            writer=axis.is_writer(coord.shard, layout.tp),
        )
        for rank, coord in layout.coords()
    ]


def moves(src: list[Extent], dst: list[Extent]) -> list[Move]:
    """What must travel so that every rank of `dst` owns its extent, given what the ranks of `src` own.

    Every destination rectangle is tiled exactly once. What a rank already owns it keeps (`src == dst`);
    of several owners the least loaded sends, so copies (replicas, replicated slices) share the sending.
    """
    sent = dict.fromkeys((extent.rank for extent in src), 0)
    own = {extent.rank: extent for extent in src}
    result = []
    for want in dst:
        for layers, slices in _cells(src, want):
            holders = [
                s for s in src if len(s.layers & layers) == len(layers) and len(s.slices & slices) == len(slices)
            ]
            if not holders:
                raise ValueError(f"nobody owns layers {layers} slices {slices} that rank {want.rank} needs")
            mine = own.get(want.rank)
            chosen = mine if mine in holders else min(holders, key=lambda s: (s.node != want.node, sent[s.rank]))
            assert chosen is not None
            if chosen.rank != want.rank:
                sent[chosen.rank] += len(layers) * len(slices)
            result.append(Move(chosen.rank, want.rank, layers, slices))
    return result


def _cells(src: list[Extent], want: Extent) -> list[tuple[Span, Span]]:
    """Cut `want` along every border of the sources, so that each cell lies wholly inside or outside each."""
    return [
        (layers, slices)
        for layers in _cut(want.layers, [s.layers for s in src])
        for slices in _cut(want.slices, [s.slices for s in src])
    ]


def _cut(span: Span, borders: list[Span]) -> list[Span]:
    points = {span.start, span.stop}
    for border in borders:
        points.update(p for p in (border.start, border.stop) if span.start < p < span.stop)
    ordered = sorted(points)
    return [Span(a, b) for a, b in pairwise(ordered)]
