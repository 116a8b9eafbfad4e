"""Groups of several layouts in one world of real processes, which share memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from seesaw.engine.executor.fork_server import fork_server
from seesaw.engine.kv.segment import Segment
from seesaw.engine.parallel.groups import LayoutGroups, SingleShard, build_groups, join_world
from seesaw.engine.parallel.layout import Layout
from seesaw.engine.parallel.process_groups import ProcessLinks, ShardGroup
from seesaw.engine.parallel.shared_memory import SharedLinks
from seesaw.engine.parallel.shared_sizes import shared_bytes
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.processes

CPU = torch.device("cpu")
LAYOUTS = [Layout.parse(text) for text in ("P4", "T4", "T2P2", "D2T2", "D2P2", "D4")]
TIMEOUT_S = 777.0
WIDTH = 64 * 1024  # of a message, float32
BYTES = 4 * WIDTH, 8 * 1000  # hidden states, tokens


def test_a_single_shard_is_the_identity() -> None:
    x = torch.ones(2, 3)
    assert SingleShard().all_reduce(x) is x and SingleShard().gather_last(x) is x


def test_nccl_may_not_use_multicast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")
    monkeypatch.setenv("TORCH_NCCL_ENABLE_MONITORING", "0")
    seen: list[tuple[str, float]] = []
    start = "torch.distributed.init_process_group"
    monkeypatch.setattr(
        start,
        lambda *args, timeout, **options: seen.append((os.environ["NCCL_NVLS_ENABLE"], timeout.total_seconds())),
    )
    join_world(0, 1, tmp_path / "rendezvous", torch.device("cuda", 0), 1860.0)
    assert seen == [("0", 1860.0)]


def test_a_peer_that_does_not_come_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with pytest.raises(RuntimeError, match="timeout"):
        join_world(0, 2, tmp_path / "rendezvous", CPU, timeout_s=0.1)
    assert not torch.distributed.is_initialized()


def test_every_layout_in_one_world(tmp_path: Path) -> None:
    context = fork_server()
    segment = Segment.create_sparse(shared_bytes(LAYOUTS, *BYTES))
    args = tmp_path / "rendezvous", segment
    ranks = [context.Process(target=_rank, args=(rank, *args), daemon=True) for rank in range(4)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(PATIENCE_S)
    assert [process.exitcode for process in ranks] == [0, 0, 0, 0]


def _rank(rank: int, rendezvous: Path, segment: Segment) -> None:
    torch.set_num_threads(1)
    join_world(rank, 4, rendezvous, CPU, TIMEOUT_S)
    _check_timeouts(rank)
    links = SharedLinks(rank, LAYOUTS, *BYTES, segment.map())
    for groups in build_groups(rank, LAYOUTS, links, CPU):
        _check_tensor_group(rank, groups)
        _check_pipe(rank, groups)
        _check_feedback(rank, groups)
        groups.drain()
    torch.distributed.destroy_process_group()


def _check_timeouts(rank: int) -> None:
    """Of a layout's groups, too: torch does not pass on the world's."""
    shards = ProcessLinks(rank, TIMEOUT_S).shards(range(4))
    assert isinstance(shards, ShardGroup)
    assert shards.process_group._get_backend(CPU).options._timeout.total_seconds() == TIMEOUT_S


def _check_tensor_group(rank: int, groups: LayoutGroups) -> None:
    stage = groups.layout.stage_ranks(groups.coord.replica, groups.coord.stage)
    assert groups.tensor.size == len(stage) and groups.tensor.shard == stage.index(rank)
    assert groups.tensor.all_reduce(torch.full((2, 3), float(rank))).tolist() == [[float(sum(stage))] * 3] * 2
    gathered = groups.tensor.gather_last(torch.full((2, 1), float(rank)))
    if groups.tensor.shard == 0:
        assert gathered is not None and gathered.tolist() == [[float(other) for other in stage]] * 2
    else:
        assert gathered is None


def _check_pipe(rank: int, groups: LayoutGroups) -> None:
    """As many sends as steps may be in flight, before anybody receives: none may block."""
    layout, (replica, stage, shard) = groups.layout, groups.coord
    in_flight = layout.pp + 1
    assert groups.pipe.is_first == (stage == 0) and groups.pipe.is_last == (stage == layout.pp - 1)
    if not groups.pipe.is_last:
        for step in range(in_flight):
            groups.pipe.send(torch.full((1, WIDTH), float(100 * rank + step)))
    if not groups.pipe.is_first:
        previous = layout.rank(replica, stage - 1, shard)
        for step in range(in_flight):
            received = groups.pipe.post((1, WIDTH), torch.float32, CPU).wait()
            assert received.unique().tolist() == [100 * previous + step]


def _check_feedback(rank: int, groups: LayoutGroups) -> None:
    """Feedback against the pipe's direction, with tokens of many steps under way."""
    layout, (replica, stage, _) = groups.layout, groups.coord
    sampler = layout.sampling_rank(replica)
    assert groups.feedback.is_sampler == (rank == sampler)
    assert groups.feedback.is_first_stage == (stage == 0)
    steps = range(layout.pp + 1)
    if groups.feedback.is_sampler:
        for step in steps:
            groups.feedback.send(torch.arange(1000) + 1000 * step + sampler)
    elif groups.feedback.is_first_stage:
        pending = [groups.feedback.post(1000, CPU) for _ in steps]
        for step in steps:
            assert pending[step].wait().tolist() == list(range(1000 * step + sampler, 1000 * step + sampler + 1000))
