"""What fits GPUs: the weights' way, weights beside KV, and the blocks of a pool that takes what is left.

Asked twice: before any worker starts, by what each GPU has free (`check_gpus`, `choose_way`), and by each worker when
its weights are in place and its largest step was rehearsed (`gpu_blocks`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.model.counts import layer_linears
from seesaw.engine.model.shapes import ModelShape, check_layout, num_slices
from seesaw.engine.model.spec import Cut
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.sizing.pools import device_option, needed_blocks, num_device_blocks, shorter
from seesaw.engine.sizing.weights import WeightsWay, device_weight_bytes
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.wording import GIB, MIB, as_size
from seesaw.engine.weights.placement import rank_bytes, whole_bytes

# What neither weights nor KV may take: CUDA graphs, and the largest step, which is measured when the weights are there.
WORKSPACE_BYTES = 4 * GIB
# What a pool that takes all the rest leaves when that step was measured: CUDA graphs, fragmentation, what comes later.
RESERVE_BYTES = 2 * GIB
FP8_MULTIPLE = 16  # rows and columns of a product in 8 bits
LEAST_GROUP = 32  # columns that share a scale
MOST_GPUS = 64  # of a replica; beyond, more GPUs are no advice


def choose_way(
    config: EngineConfig, geometry: KVGeometry, max_model_len: int, free_bytes: Sequence[int]
) -> Literal["resident", "reload"]:
    """`resident` if on every rank all layouts' weights leave enough of its `free_bytes` (of a GPU still empty) for KV.

    Enough is the pool that the configuration asks for. If it asks for none, enough is at least half of what
    `reload` would leave, and room for the longest sequences that have to fit.
    """
    asked = num_device_blocks(config, geometry, "cuda")
    together = device_weight_bytes(geometry, "resident")
    alone = device_weight_bytes(geometry, "reload")
    for rank, free in enumerate(free_bytes):
        room = free - WORKSPACE_BYTES
        if asked is not None:
            enough = geometry.device_pool_bytes(rank, asked)
        else:
            least = geometry.device_pool_bytes(rank, needed_blocks(geometry, max_model_len))
            enough = max((room - alone[rank]) // 2, least)
        if room - together[rank] < enough:
            return "reload"
    return "resident"


def check_gpus(
    config: EngineConfig, geometry: KVGeometry, max_model_len: int, way: WeightsWay, free_bytes: Sequence[int]
) -> None:
    """Raise ConfigError if weights, and beside them the KV pool, certainly do not fit what each rank's GPU, still
    empty, has free. What passes may yet be refused by `gpu_blocks`, which knows the largest step."""
    for layout in config.plan.layouts:
        _check_products(geometry, layout)
    asked = num_device_blocks(config, geometry, "cuda")
    reserve = 0 if asked is not None else RESERVE_BYTES
    for rank, weights in enumerate(device_weight_bytes(geometry, way)):
        room = free_bytes[rank] - weights - reserve
        if room < 0:
            steps = f", and steps {as_size(reserve)}" if reserve else ""
            raise ConfigError(
                f"rank {rank}'s GPU has {as_size(free_bytes[rank])} free but the weights of plan {config.plan} take "
                f"{as_size(weights)} of it{steps}: {_less_weights(geometry, way, min(free_bytes) - reserve)}"
            )
        _check_pool(config, geometry, max_model_len, rank, room, asked, "beside the weights")


def _check_products(geometry: KVGeometry, layout: Layout) -> None:
    """Raise ConfigError if tensor cores take no product of 8 bits that a rank of this layout would compute."""
    shape, slices = geometry.shape, num_slices(geometry.plan)
    if shape.quantization is None:
        return
    for linear in layer_linears(shape):
        group = shape.quantization.group(linear.in_size(slices))
        count = slices // layout.tp
        rows = linear.out_size(slices) * (count if linear.cut is Cut.ROWS else 1)
        columns = linear.in_size(slices) * (count if linear.cut is Cut.COLUMNS else 1)
        if rows % FP8_MULTIPLE or columns % FP8_MULTIPLE or (group is not None and group < LEAST_GROUP):
            blocks = f" in blocks of {LEAST_GROUP}" if group is not None else ""
            raise ConfigError(
                f"layout {layout} leaves {rows} x {columns} of {linear.parts[0].name} to a GPU, and fp8 needs "
                f"multiples of {FP8_MULTIPLE}{blocks}: use a smaller T degree, or a model that is not in fp8"
            )


def gpu_blocks(
    config: EngineConfig, geometry: KVGeometry, max_model_len: int, rank: int, free_bytes: int, step_bytes: int
) -> int:
    """Blocks of the pool of a rank whose GPU, with the weights in place, has `free_bytes`; its largest step takes
    `step_bytes` of them. Raises ConfigError if the pool that is asked for, or the least there may be, does not fit."""
    asked = num_device_blocks(config, geometry, "cuda")
    room = free_bytes - step_bytes - (0 if asked is not None else RESERVE_BYTES)
    _check_pool(config, geometry, max_model_len, rank, room, asked, "beside the weights and the largest step")
    return asked if asked is not None else _blocks_in(geometry, rank, room)


def in_flight_bytes(config: EngineConfig, shape: ModelShape) -> int:
    """What a rank holds beside the step that it runs: hidden states that were received ahead, or are not yet sent."""
    in_flight = max(layout.max_in_flight for layout in config.plan.layouts)
    return 2 * in_flight * config.max_num_batched_tokens * shape.hidden * shape.dtype_bytes


def _check_pool(
    config: EngineConfig, geometry: KVGeometry, max_model_len: int, rank: int, room: int, asked: int | None, beside: str
) -> None:
    """Raise ConfigError if `room` bytes hold neither the pool that is asked for nor the least."""
    possible, needed = _blocks_in(geometry, rank, room), needed_blocks(geometry, max_model_len)
    has = f"rank {rank}'s GPU has {as_size(max(0, room))} for KV {beside}"
    if possible < needed:
        raise ConfigError(
            f"{has} but max_model_len {max_model_len} needs {as_size(geometry.device_pool_bytes(rank, needed))}: "
            f"{shorter(geometry, possible)}use more GPUs (a larger T or P degree) or a smaller model"
        )
    if asked is not None and possible < asked:
        # In bytes of the largest rank's blocks, as the setting is read.
        most = possible if config.num_device_blocks else f"{possible * geometry.max_device_block_bytes // MIB}MiB"
        raise ConfigError(
            f"{has} but the pool that is asked for takes {as_size(geometry.device_pool_bytes(rank, asked))}: "
            f"lower {device_option(config)} to at most {most}, or leave it out"
        )


def _blocks_in(geometry: KVGeometry, rank: int, room: int) -> int:
    """The blocks of the largest pool in `room` bytes; one block more is for padding."""
    return max(0, room // geometry.device_block_bytes(rank) - 1)


def _less_weights(geometry: KVGeometry, way: WeightsWay, room: int) -> str:
    """What to change where a rank's weights exceed `room` bytes."""
    if way == "resident" and all(size <= room for size in device_weight_bytes(geometry, "reload")):
        return "use --weights reload, more GPUs (a larger T or P degree) or a smaller model"
    fitting = " or ".join(_fitting_layouts(geometry.shape, room))
    if not fitting:
        return "use GPUs that have more memory free, or a smaller model"
    return f"give each replica more GPUs ({fitting} at least) or choose a smaller model"


def _fitting_layouts(shape: ModelShape, room: int) -> list[str]:
    """The least T and the least P degree whose ranks' weights each fit `room` bytes, as far as there are such."""
    if room <= 0:
        return []
    least = math.ceil(whole_bytes(shape, Plan(Layout(), Layout())) / room)
    degrees = range(least, min(2 * least, MOST_GPUS) + 1)
    kinds = [[Layout(tp=degree) for degree in degrees], [Layout(pp=degree) for degree in degrees]]
    fitting = [[layout for layout in kind if _fits(layout, shape, room)] for kind in kinds]
    return [str(layouts[0]) for layouts in fitting if layouts]


def _fits(layout: Layout, shape: ModelShape, room: int) -> bool:
    try:
        check_layout(layout, shape)
    except ConfigError:
        return False
    return max(rank_bytes(shape, Plan(layout, layout), layout)) <= room
