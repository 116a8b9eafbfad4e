"""CUDA graphs of a rank's decode steps in one layout, and all their static buffers. Used by the runner.

A graph holds embedding and layers (with their all-reduces) for a fixed number of rows, its bucket. A smaller batch is
padded with rows of one token that read and write the pool's padding block, so that no kernel needs a mask.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import torch

from seesaw.engine.model.blas import faster_library
from seesaw.engine.model.decoder import Decoder
from seesaw.engine.ops.base import BatchInputs, GraphOps


def buckets(max_rows: int) -> list[int]:
    """Batch sizes to capture, ascending, up to one that holds `max_rows`: each at most an eighth over the last,
    beyond 64."""
    sizes = [1, 2, 4, *range(8, 65, 8)]
    while sizes[-1] < max_rows:
        sizes.append(sizes[-1] + (1 << (sizes[-1].bit_length() - 4)))
    return sizes[: bisect_left(sizes, max_rows) + 1]


class DecodeGraphs:
    """One graph for each bucket. Graphs share their memory, so one runs at a time, in stream order."""

    def __init__(
        self,
        model: Decoder,
        ops: GraphOps,
        kv: list[torch.Tensor],
        padding_block: int,
        max_rows: int,
        max_blocks: int,
        is_first: bool,
    ) -> None:
        """`max_blocks`: of a sequence. `is_first`: the rank embeds token ids, instead of receiving hidden states."""
        self._model = model
        self._ops = ops
        self._kv = kv
        self._padding_block = padding_block
        self._buckets = buckets(max_rows)
        self._is_first = is_first
        largest, device = self._buckets[-1], kv[0].device
        self._tables = torch.zeros(largest, max_blocks, dtype=torch.int32, device=device)
        if is_first:
            self._inputs = torch.zeros(largest, dtype=torch.int64, device=device)
        else:
            dtype: torch.dtype = getattr(torch, model.shape.dtype)
            self._inputs = torch.zeros(largest, model.shape.hidden, dtype=dtype, device=device)
        self._plans: dict[int, Any] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._outputs: dict[int, torch.Tensor] = {}
        self._planned = 0  # the bucket of the step to replay
        self._rows = 0  # of that step

    def capture(self) -> None:
        """Capture all buckets, the largest first: the others fit into its memory."""
        heads, kv_heads = self._model.num_heads, self._model.num_kv_heads
        none = torch.zeros(0, dtype=torch.int32)
        nobody = BatchInputs(none, none, none[:, None])
        pool = torch.cuda.graph_pool_handle()
        for rows in reversed(self._buckets):
            plan = self._plans[rows] = self._ops.graph_plan(heads, kv_heads, self._tables[:rows])
            self._ops.replan(plan, self._padded(nobody, rows))
            with faster_library([layer.linears for layer in self._model.decoder_layers], rows):
                self._compute(rows)  # once outside: libraries choose and load their kernels
                torch.cuda.current_stream().synchronize()
                graph = self._graphs[rows] = torch.cuda.CUDAGraph()
                # Other threads of the process (NCCL's watchdog, the reports) may use CUDA meanwhile.
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    self._outputs[rows] = self._compute(rows)

    def _compute(self, rows: int) -> torch.Tensor:
        inputs = self._inputs[:rows]
        # The layers reuse the memory of their input.
        hidden = self._model.embed(inputs) if self._is_first else inputs.clone()
        return self._model.layers(hidden, self._plans[rows], self._kv)

    def fit(self, batch: BatchInputs) -> bool:
        """Whether a graph can run this step: one token of each sequence, and not too many."""
        return len(batch.query_lens) <= self._buckets[-1] and batch.num_tokens == len(batch.query_lens)

    def plan(self, batch: BatchInputs) -> None:
        """Describe the step of the next `replay`."""
        self._rows = len(batch.query_lens)
        self._planned = self._buckets[bisect_left(self._buckets, self._rows)]
        padded = self._padded(batch, self._planned)
        self._ops.replan(self._plans[self._planned], padded)

    def replay(self, inputs: torch.Tensor) -> torch.Tensor:
        """Run the planned step over token ids `[rows]` or hidden states `[rows, hidden]`.

        Returns hidden states `[rows, hidden]`, which are there until the next replay.
        """
        self._inputs[: self._rows].copy_(inputs)
        self._graphs[self._planned].replay()
        return self._outputs[self._planned][: self._rows]

    def _padded(self, batch: BatchInputs, rows: int) -> BatchInputs:
        missing = rows - len(batch.query_lens)
        ones = torch.ones(missing, dtype=torch.int32)
        padding = torch.full((missing, batch.tables.shape[1]), self._padding_block, dtype=torch.int32)
        return BatchInputs(
            query_lens=torch.cat((batch.query_lens, ones)),
            context_lens=torch.cat((batch.context_lens, ones)),
            tables=torch.cat((batch.tables, padding)),
        )
