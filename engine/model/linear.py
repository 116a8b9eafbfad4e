"""A checkpoint's linear layer as one value, whatever its numbers are. Used by the layers of every family."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Linear(NamedTuple):
    """`x @ data.T + bias`. `data` is `[out, in]`, K-major, in every layout: fp8 tensor cores take nothing else."""

    data: torch.Tensor
    bias: torch.Tensor | None = None  # [out]

    @property
    def in_features(self) -> int:
        return self.data.shape[1]

    def product(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """`[rows, in]` to `[rows, out]`, written to `out` if it is given."""
        if out is None:
            return F.linear(x, self.data, self.bias)
        if self.bias is None:
            return torch.mm(x, self.data.T, out=out)
        return torch.addmm(self.bias, x, self.data.T, out=out)
