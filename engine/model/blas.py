"""Which of torch's two BLAS libraries runs a layer's products faster at some number of rows. Used by the CUDA graphs.

cuBLAS and cuBLASLt choose kernels by different rules. For a few hundred rows neither rule is always right, and a wrong
kernel can take half as long again: measured once for every size, when graphs are captured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from seesaw.engine.model.linear import Linear

_LIBRARIES = ("cublas", "cublaslt")
_LAYERS = 4  # enough weights that the device's cache does not hold them
_REPEATS = 3
_HEAD_START_CYCLES = 1_000_000


@contextmanager
def faster_library(layers: Sequence[Sequence[Linear]], rows: int) -> Iterator[None]:
    """Compute with the library that is faster for these layers' products over `rows` rows, on the current device."""
    if not layers or any(linear.input_format is not None for layer in layers for linear in layer):
        yield  # products in 8 bits are not theirs
        return
    before = torch.backends.cuda.preferred_blas_library()
    try:
        seconds = {library: _seconds(library, layers[:_LAYERS], rows) for library in _LIBRARIES}
        torch.backends.cuda.preferred_blas_library(min(_LIBRARIES, key=lambda library: seconds[library]))
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


def _seconds(library: str, layers: Sequence[Sequence[Linear]], rows: int) -> float:
    torch.backends.cuda.preferred_blas_library(library)
    return min(_once(layers, rows) for _ in range(_REPEATS + 1))  # the first time it loads its kernels


def _once(layers: Sequence[Sequence[Linear]], rows: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    inputs = [
        torch.randn(rows, linear.data.shape[1], dtype=linear.data.dtype, device=linear.data.device)
        for linear in layers[0]
    ]
    torch.cuda._sleep(_HEAD_START_CYCLES)  # so that kernels are launched before they can run: launching takes as long
    start.record()
    for layer in layers:
        for linear, x in zip(layer, inputs, strict=True):
            linear.product(x)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
