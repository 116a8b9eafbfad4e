"""A checkpoint's linear layer as one value, whatever its numbers are. Used by the layers of every family."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from seesaw.engine.ops.fp8 import Activation, Fp8Format, Quantized, dequantized


class Linear(NamedTuple):
    """`x @ data.T + bias`. `data` is `[out, in]`, K-major, in every layout: fp8 tensor cores take nothing else."""

    data: torch.Tensor  # in the model's dtype, or e4m3
    bias: torch.Tensor | None = None  # [out]
    scales: torch.Tensor | None = None  # of e4m3, float32: [out], or [out or blocks of out, groups of columns]
    dtype: torch.dtype | None = None  # of the result, where data is e4m3
    input_scale: torch.Tensor | None = None  # float32 [1]: of the inputs, where not each row has its own

    @property
    def input_format(self) -> Fp8Format | None:
        """What `product` takes: 8 bits as its weights are, None for the model's dtype."""
        if self.scales is None:
            return None
        group = None if self.scales.ndim == 1 else self.data.shape[1] // self.scales.shape[1]
        return Fp8Format(group, self.input_scale)

    def product(self, x: Activation, out: torch.Tensor | None = None) -> torch.Tensor:
        """`[rows, in]`, in `input_format`, to `[rows, out]`, written to `out` if it is given."""
        if isinstance(x, Quantized):
            return self._quantized(x, out)
        if out is None:
            return F.linear(x, self.data, self.bias)
        if self.bias is None:
            return torch.mm(x, self.data.T, out=out)
        return torch.addmm(self.bias, x, self.data.T, out=out)

    def _quantized(self, x: Quantized, out: torch.Tensor | None) -> torch.Tensor:
        assert self.scales is not None and self.dtype is not None
        if x.data.is_cuda and self.dtype == torch.bfloat16:
            from seesaw.engine.ops.fp8_products import grouped_product, product

            by_rows_or_groups = product if self.scales.ndim == 1 else grouped_product
            return by_rows_or_groups(x, self.data, self.scales, self.bias, self.dtype, out)
        result = self._plain(x).to(self.dtype)
        return result if out is None else out.copy_(result)

    def _plain(self, x: Quantized) -> torch.Tensor:
        """The same numbers anywhere, in float32: products of 8 bits are exact there, only their sums are rounded."""
        assert self.scales is not None
        if self.scales.ndim == 1:
            result = (x.data.float() @ self.data.float().T) * x.scales * self.scales
        else:
            result = dequantized(x.data, x.scales) @ dequantized(self.data, self.scales).T
        return result if self.bias is None else result + self.bias.float()
