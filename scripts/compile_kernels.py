"""Compile the FlashInfer kernels that the engine uses, so that the first request does not wait for them.

Needs nvcc and no GPU: FLASHINFER_CUDA_ARCH_LIST names the architecture, as in 8.9. FlashInfer keeps kernels by the
whole list, which is that of the GPUs it sees where the variable is not set: so compile for one architecture at a time.
Called by the Dockerfile.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # Seesaw need not be installed for this

from engine.ops.capability import HEAD_DIMS, attention_backends, parse_architecture
from engine.values.errors import ConfigError

DEFAULT_HEAD_DIMS = (64, 128)  # what nearly all models have


def prefill_backends(architectures: Sequence[str]) -> list[str]:
    """Those that the operators may choose on any of these GPUs. Raises ConfigError for one that is too old, and
    ValueError for what names none."""
    backends = [attention_backends(parse_architecture(architecture)) for architecture in architectures]
    return sorted({backend for of_one in backends for backend in of_one})


def specs(backends: Sequence[str], head_dims: Sequence[int], windows: Sequence[bool]) -> Iterator[Any]:
    """One spec for each module."""
    import torch
    from flashinfer.jit import gen_act_and_mul_module, gen_batch_decode_module, gen_batch_prefill_module
    from flashinfer.jit.norm import gen_norm_module
    from flashinfer.jit.sampling import gen_sampling_module

    yield from (gen_norm_module(), gen_act_and_mul_module("silu"), gen_sampling_module())
    for dtype, head_dim, window in product((torch.bfloat16, torch.float16), head_dims, windows):
        attention = {
            "dtype_q": dtype,
            "dtype_kv": dtype,
            "dtype_o": dtype,
            "dtype_idx": torch.int32,
            "head_dim_qk": head_dim,
            "head_dim_vo": head_dim,
            "pos_encoding_mode": 0,
            "use_sliding_window": window,
            "use_logits_soft_cap": False,
        }
        yield gen_batch_decode_module(**attention)
        for backend in backends:
            yield gen_batch_prefill_module(backend, **attention, use_fp16_qk_reduction=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the FlashInfer kernels that the engine uses.")
    parser.add_argument(
        "--head-dims",
        type=int,
        nargs="+",
        choices=HEAD_DIMS,
        default=DEFAULT_HEAD_DIMS,
        help="of the models to be served; each takes minutes (default: 64 128)",
    )
    parser.add_argument(
        "--sliding-window", action="store_true", help="also for models with a sliding window, such as Mistral-7B-v0.1"
    )
    args = parser.parse_args()
    architectures = os.environ.get("FLASHINFER_CUDA_ARCH_LIST", "").split()
    if not architectures:
        _refuse("set FLASHINFER_CUDA_ARCH_LIST to the GPU's architecture, as in 8.9 or 9.0a")
    try:
        backends = prefill_backends(architectures)
    except ConfigError as error:
        _refuse(str(error))
    except ValueError:
        _refuse(f"FLASHINFER_CUDA_ARCH_LIST must be as in 8.9 or 9.0a, not {' '.join(architectures)}")
    try:
        from flashinfer.jit import build_jit_specs
    except ImportError as error:
        _refuse(f"this needs FlashInfer ({error}): pip install -e '.[cuda]'")

    modules = list(specs(backends, args.head_dims, (False, True) if args.sliding_window else (False,)))
    print(f"compiling {len(modules)} modules for {' '.join(architectures)}", file=sys.stderr)
    build_jit_specs(modules, verbose=False)


def _refuse(reason: str) -> NoReturn:
    print(f"compile_kernels: error: {reason}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
