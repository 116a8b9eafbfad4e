"""Whether shards share memory: they must all come to the same answer, since what follows is collective."""

from __future__ import annotations

import os
from collections.abc import Collection

import pytest
import torch

from seesaw.engine.parallel import peers
from seesaw.engine.parallel.process_groups import ShardGroup
from seesaw.engine.values.config import CustomAllReduce

Links = Collection[tuple[int, int]]


def answers(
    monkeypatch: pytest.MonkeyPatch, links: Links, ranks: range, pcie: Links = (), setting: CustomAllReduce = "auto"
) -> list[bool]:
    """By shard, on a host whose GPUs reach each other over these links, of which those over PCIe have no atomics."""
    monkeypatch.setattr(peers.dist, "get_backend", lambda group: "nccl")
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: (a, b) in links or (b, a) in links)
    monkeypatch.setattr(peers, "has_atomics", lambda a, b: (a, b) not in pcie and (b, a) not in pcie)
    return [
        peers.can_share(ShardGroup(ranks, shard, None), torch.device("cuda", rank), setting)
        for shard, rank in enumerate(ranks)
    ]


def test_all_shards_come_to_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCCL_P2P_DISABLE", raising=False)
    square = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert answers(monkeypatch, square, range(4)) == [True] * 4
    assert answers(monkeypatch, square[:-1], range(4)) == [False] * 4  # 0 and 1 reach everybody
    assert answers(monkeypatch, [(0, 1), (2, 3)], range(2, 4)) == [True] * 2
    assert answers(monkeypatch, square, range(4), pcie=[(2, 3)]) == [False] * 4
    assert answers(monkeypatch, square, range(4), setting="off") == [False] * 4
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    assert answers(monkeypatch, square, range(4)) == [False] * 4


def test_sockets_have_paths_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, folder, used in (("TMPDIR", "/scratch", "/scratch"), ("TMPDIR", "/" + 91 * "d", "/tmp")):
        monkeypatch.setenv(name, folder)
        with peers.short_socket_paths():
            assert os.environ["TMPDIR"] == used
        assert os.environ["TMPDIR"] == folder
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setenv("TMP", "/" + 91 * "d")
    with peers.short_socket_paths():
        assert os.environ["TMPDIR"] == "/tmp"
    assert "TMPDIR" not in os.environ
