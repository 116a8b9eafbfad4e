"""Compile the FlashInfer kernels that the engine uses, so that the first request does not wait for them.

Needs nvcc and no GPU: FLASHINFER_CUDA_ARCH_LIST names the architecture, as in 8.9. FlashInfer keeps kernels by the
whole list, which is that of the GPUs it sees where the variable is not set: so compile for one architecture at a time.
Called by the Dockerfile.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # Seesaw need not be installed for this

from seesaw.engine.ops.capability import HEAD_DIMS, attention_backends, has_xqa, parse_architecture
from seesaw.engine.values.errors import ConfigError

DEFAULT_HEAD_DIMS = (64, 128)  # what nearly all models have


@dataclass(frozen=True)
class Wanted:
    """What decides which modules there are."""

    architectures: tuple[str, ...]
    head_dims: tuple[int, ...]
    windows: tuple[bool, ...]
    fp8_kv_groups: tuple[int, ...]  # query heads on a KV head, of models whose KV cache may be in 8 bits
    block_size: int

    def backends(self, fp8_kv: bool = False) -> list[str]:
        """Those for prefill that the operators may choose on any of these GPUs. Raises ConfigError for one that is too
        old, and ValueError for what names none."""
        capabilities = map(parse_architecture, self.architectures)
        return sorted({name for each in capabilities for name in attention_backends(each, fp8_kv=fp8_kv)})

    @property
    def xqa(self) -> bool:
        return any(has_xqa(parse_architecture(architecture)) for architecture in self.architectures)


def specs(wanted: Wanted) -> Iterator[Any]:
    """One spec for each module."""
    import torch
    from flashinfer.jit import gen_act_and_mul_module, gen_batch_decode_module, gen_batch_prefill_module
    from flashinfer.jit.norm import gen_norm_module
    from flashinfer.jit.sampling import gen_sampling_module
    from flashinfer.jit.xqa import gen_xqa_module

    yield from (gen_norm_module(), gen_act_and_mul_module("silu"), gen_sampling_module())
    halves, e4m3 = (torch.bfloat16, torch.float16), torch.float8_e4m3fn
    pairs = [(half, half) for half in halves] + [(half, e4m3) for half in halves if wanted.fp8_kv_groups]
    for (dtype, kv_dtype), head_dim, window in product(pairs, wanted.head_dims, wanted.windows):
        attention = {
            "dtype_q": dtype,
            "dtype_kv": kv_dtype,
            "dtype_o": dtype,
            "dtype_idx": torch.int32,
            "head_dim_qk": head_dim,
            "head_dim_vo": head_dim,
            "pos_encoding_mode": 0,
            "use_sliding_window": window,
            "use_logits_soft_cap": False,
        }
        yield gen_batch_decode_module(**attention)
        for backend in wanted.backends(fp8_kv=kv_dtype == e4m3):
            yield gen_batch_prefill_module(backend, **attention, use_fp16_qk_reduction=False)
    if wanted.xqa:
        for dtype, head_dim, group in product(halves, wanted.head_dims, wanted.fp8_kv_groups):
            yield gen_xqa_module(dtype, e4m3, wanted.block_size, head_dim, group, False, dtype)


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
    parser.add_argument(
        "--fp8-kv-groups",
        type=int,
        nargs="+",
        default=(),
        metavar="N",
        help="also for --kv-cache-dtype fp8, of models with so many query heads on a KV head, as in 4 8",
    )
    parser.add_argument("--block-size", type=int, default=16, help="of that KV cache (default: 16, as the engine's)")
    args = parser.parse_args()
    windows = (False, True) if args.sliding_window else (False,)
    architectures = tuple(os.environ.get("FLASHINFER_CUDA_ARCH_LIST", "").split())
    wanted = Wanted(architectures, tuple(args.head_dims), windows, tuple(args.fp8_kv_groups), args.block_size)
    if not architectures:
        _refuse("set FLASHINFER_CUDA_ARCH_LIST to the GPU's architecture, as in 8.9 or 9.0a")
    try:
        wanted.backends(fp8_kv=bool(wanted.fp8_kv_groups))
    except ConfigError as error:
        _refuse(str(error))
    except ValueError:
        _refuse(f"FLASHINFER_CUDA_ARCH_LIST must be as in 8.9 or 9.0a, not {' '.join(architectures)}")
    try:
        from flashinfer.jit import build_jit_specs
    except ImportError as error:
        _refuse(f"this needs FlashInfer ({error}): pip install -e '.[cuda]'")

    modules = list(specs(wanted))
    print(f"compiling {len(modules)} modules for {' '.join(architectures)}", file=sys.stderr)
    build_jit_specs(modules, verbose=False)


def _refuse(reason: str) -> NoReturn:
    print(f"compile_kernels: error: {reason}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
