"""Times what a rank does, on the rank, before the engine serves. Used by the worker.

All ranks do it at once, as they will later: they share a host's memory, and on the CPU its cores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
import torch.distributed as dist

from seesaw.engine.cost.rank_times import RankTimes
from seesaw.engine.cost.times import StageTimes
from seesaw.engine.device.moments import seconds_of
from seesaw.engine.device.upload import upload
from seesaw.engine.kv.copies import BlockCopier
from seesaw.engine.kv.device_pool import DevicePool
from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.ops.base import BatchInputs
from seesaw.engine.parallel.groups import LayoutGroups, TensorGroup
from seesaw.engine.sampling.params import RowSampling
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.commands import Swap
from seesaw.engine.worker.runner import Runner
from seesaw.engine.worker.timing import Limits, StageTimer

_BUDGET_S = {"cpu": 0.5, "cuda": 5.0}  # of steps, in all layouts together: what real ones correct later
_REPEATS = {"cpu": 1, "cuda": 3}
_ROW = RowSampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)  # what the API does if nothing is asked for
_SWAP_BLOCKS, _SWAP_BYTES = 64, 128 << 20  # at most


def time_rank(
    runner: Runner,
    geometry: KVGeometry,
    groups: Sequence[LayoutGroups],
    pool: DevicePool,
    copier: BlockCopier | None,
    config: EngineConfig,
    max_model_len: int,
    layouts: Iterable[tuple[int, float]],
) -> RankTimes:
    """Times the rank in every layout, and captures its graphs there. Collective over all ranks; writes into both pools.

    `groups` are by layout. `layouts` has the runner be in each, and says how long the weights took to get there.
    """
    limits = Limits.of(config, geometry, max_model_len, pool.num_blocks, pool.device.type)
    if pool.device.type == "cpu":
        pool.touch(geometry.blocks_for(limits.context_tokens))
    stages: dict[int, StageTimes] = {}
    transition_s = 0.0
    for layout, switch_s in layouts:
        runner.capture(config.max_num_seqs)
        stages[layout] = time_stage(runner, groups[layout].tensor, limits, pool.device, len(groups))
        transition_s = max(transition_s, 0.0 if geometry.plan.is_static else switch_s)
    swaps_s = (0.0, 0.0) if copier is None else time_swaps(copier, geometry, pool.device)
    return RankTimes(tuple(stages[layout] for layout in range(len(groups))), transition_s, *swaps_s)


def time_stage(runner: Runner, group: TensorGroup, limits: Limits, device: torch.device, layouts: int) -> StageTimes:
    """This rank's stage of the layout that the runner is in, one of so many. Its shards, in `group`, do it together."""

    def run(batch: BatchInputs, sampled: int, times: int) -> list[float]:
        rows = [_ROW] * sampled
        # On CUDA the host runs ahead, as when it serves.
        completions = [runner.alone(batch, rows) for _ in range(times)]
        end = completions[-1].end
        if not isinstance(end, float):
            end.synchronize()
        return slowest([completion.busy_s() for completion in completions], group, device)

    return StageTimer(run, limits, _BUDGET_S[device.type] / layouts, _REPEATS[device.type]).measure()


def slowest(seconds: list[float], group: TensorGroup, device: torch.device) -> list[float]:
    """The slowest shard's seconds of each run: the same bits on all shards, which decide by them."""
    mine = torch.zeros(len(seconds), group.size, dtype=torch.float32)
    mine[:, group.shard] = torch.tensor(seconds)
    # Zeros are added to each entry, so the order of the summands does not matter.
    found: list[float] = group.all_reduce(upload(mine, device)).amax(1).tolist()
    return found


def time_swaps(copier: BlockCopier, geometry: KVGeometry, device: torch.device) -> tuple[float, float]:
    """Seconds of this rank's part of a block to the host (in the prefill layout) and from there (in the decode layout).

    0 for what it does not copy. Collective over all ranks, which use the same blocks of the host pool: what they hold
    afterwards means nothing.
    """
    plan = geometry.plan
    count = min(_SWAP_BLOCKS, copier.num_blocks, max(1, _SWAP_BYTES // geometry.host_block_bytes))
    blocks = list(range(count))
    out_s, in_s = (
        _copy_s(copier, Swap(0, plan.index(layout), 0, to_host, blocks, blocks), device) / count
        for layout, to_host in ((plan.prefill, True), (plan.decode, False))
    )
    return out_s, in_s


def _copy_s(copier: BlockCopier, swap: Swap, device: torch.device) -> float:
    """Seconds of the second of two swaps: the first finds memory that nobody has touched."""
    moved_bytes = copier.copy(swap)
    if device.type == "cuda":
        torch.cuda.current_stream().synchronize()
    dist.barrier()
    seconds = seconds_of(partial(copier.copy, swap), device)
    return seconds if moved_bytes else 0.0
