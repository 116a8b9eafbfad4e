"""How the shards of a stage add up, where they share no memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F

from seesaw.engine.model.linear import Linear
from seesaw.engine.model.sums import Half, ReducedSums, Sums, make_sums
from seesaw.engine.ops.base import make_ops
from seesaw.engine.parallel.groups import SingleShard
from tests.tiny import ThreadGroup, tiny_shape

CPU = torch.device("cpu")
SHAPE = tiny_shape()
HIDDEN = SHAPE.hidden
EPS = 1e-5


def test_one_shard_has_nothing_to_reduce() -> None:
    ops = make_ops(CPU, SHAPE, block_size=4)
    sums = make_sums(ops, SingleShard(), SHAPE, max_rows=8, device=CPU)
    x, weight = torch.randn(5, 7), torch.randn(HIDDEN, 7)
    assert torch.equal(sums.total(sums.product(x, Linear(weight), Half.ATTENTION)), F.linear(x, weight))


def test_shards_add_up_to_the_whole_product() -> None:
    torch.manual_seed(0)
    ops = make_ops(CPU, SHAPE, block_size=4)
    x, weight = torch.randn(5, 8), torch.randn(HIDDEN, 8)
    residual, scale = torch.randn(5, HIDDEN), torch.rand(HIDDEN)
    whole = residual + x @ weight.T

    def run(shard: int, sums: Sums) -> tuple[torch.Tensor, torch.Tensor]:
        part = slice(4 * shard, 4 * shard + 4)
        linear = Linear(weight[:, part])
        normed, summed = sums.add_norm(sums.product(x[:, part], linear, Half.ATTENTION), residual.clone(), scale, EPS)
        return normed.clone(), sums.total(sums.product(x[:, part], linear, Half.MLP), summed)

    groups = ThreadGroup.make(2)
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda group: run(group.shard, ReducedSums(ops, group)), groups))
    for normed, total in results:
        torch.testing.assert_close(normed, ops.rms_norm(whole, scale, EPS))
        torch.testing.assert_close(total, whole + x @ weight.T)
