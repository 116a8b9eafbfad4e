"""The bytes of weights that each way to have them takes, on the devices and on the host.

The ways (`weights_mode`): `static` for one layout, else `resident` (all layouts at once) or `reload` (one at a time,
copied from the host's store).
"""

from __future__ import annotations

from typing import Literal

from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.weights.placement import rank_bytes, whole_bytes

WeightsWay = Literal["static", "resident", "reload"]


def device_weight_bytes(geometry: KVGeometry, way: WeightsWay) -> list[int]:
    """Bytes of weights in each rank's own memory, by rank."""
    plan = geometry.plan
    by_rank = list(zip(*(rank_bytes(geometry.shape, plan, layout) for layout in plan.layouts), strict=True))
    if way == "resident":
        return [sum(sizes) for sizes in by_rank]
    return [max(sizes) for sizes in by_rank]


def store_bytes(geometry: KVGeometry, way: WeightsWay) -> int:
    """Bytes of the host's copy of all weights, in shared memory. Where all layouts are resident there is none."""
    return whole_bytes(geometry.shape, geometry.plan) if way == "reload" else 0
