"""Compile the FlashInfer kernels that the engine uses, so that the first request does not wait for them.

Needs nvcc and no GPU: FLASHINFER_CUDA_ARCH_LIST names the architectures, as in "8.9" or "8.9 9.0", and must be the same
when the engine runs. Called by the Dockerfile.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

HEAD_DIMS = (64, 128)


def specs(architectures: list[str]) -> Iterator[Any]:
    """One spec for each module. FlashInfer's fa3 is for Hopper (9.x) only."""
    import torch
    from flashinfer.jit import gen_act_and_mul_module, gen_batch_decode_module, gen_batch_prefill_module
    from flashinfer.jit.norm import gen_norm_module
    from flashinfer.jit.sampling import gen_sampling_module

    yield from (gen_norm_module(), gen_act_and_mul_module("silu"), gen_sampling_module())
    backends = ["fa2"] + ["fa3"] * any(architecture.startswith("9.") for architecture in architectures)
    for dtype, head_dim in product((torch.bfloat16, torch.float16), HEAD_DIMS):
        attention = {
            "dtype_q": dtype,
            "dtype_kv": dtype,
            "dtype_o": dtype,
            "dtype_idx": torch.int32,
            "head_dim_qk": head_dim,
            "head_dim_vo": head_dim,
            "pos_encoding_mode": 0,
            "use_sliding_window": False,
            "use_logits_soft_cap": False,
        }
        yield gen_batch_decode_module(**attention)
        for backend in backends:
            yield gen_batch_prefill_module(backend, **attention, use_fp16_qk_reduction=False)


def main() -> None:
    architectures = os.environ.get("FLASHINFER_CUDA_ARCH_LIST", "").split()
    if not architectures:
        sys.exit('compile_kernels: error: set FLASHINFER_CUDA_ARCH_LIST to the architectures, as in "8.9 9.0"')
    from flashinfer.jit import build_jit_specs

    modules = list(specs(architectures))
    print(f"compiling {len(modules)} modules for {' '.join(architectures)}", file=sys.stderr)
    build_jit_specs(modules, verbose=False)


if __name__ == "__main__":
    main()
