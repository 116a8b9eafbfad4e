"""Which of the CUDA operators' kernels a GPU has, by its compute capability.

The one rule for the operators and for what `scripts/compile_kernels.py` compiles, so it imports neither FlashInfer nor
torch. Our own Triton kernels run on every GPU that is allowed here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.values.config import AttentionBackend
from seesaw.engine.values.errors import ConfigError

if TYPE_CHECKING:
    import torch

Capability = tuple[int, int]  # major, minor, as in 8.9

HEAD_DIMS = (64, 128, 256)
FP8_OLDEST: Capability = (8, 9)  # the first with tensor cores for 8 bits
OLDEST: Capability = (8, 0)  # the first with bfloat16 and asynchronous copies into shared memory
PORTABLE_VARIABLE = "SEESAW_PORTABLE"


def check_gpu(capability: Capability, shape: ModelShape, setting: AttentionBackend = "auto") -> tuple[str, ...]:
    """Raise ConfigError if a GPU cannot run a model in half precision; returns its `attention_backends`."""
    backends = attention_backends(capability, setting, shape.kv_cache_dtype is not None)
    if shape.quantization:
        check_fp8(capability, shape.dtype)
    return backends


def attention_backends(
    capability: Capability, setting: AttentionBackend = "auto", fp8_kv: bool = False
) -> tuple[str, ...]:
    """FlashInfer's backends for a prefill's attention, `fa2` or `fa3` or both: then a batch's shape decides.

    Decode is `fa2`, or XQA's (`has_xqa`). Raises ConfigError for a GPU that is too old, and for a setting that it
    cannot follow.
    """
    if capability < OLDEST:
        raise ConfigError(
            f"this GPU has compute capability {written(capability)}, and half precision needs {written(OLDEST)} or "
            "newer (A100, A10, L4, H100, ...): use another GPU, --dtype float32, or --device cpu"
        )
    has_fa3 = capability[0] == 9  # it is made of Hopper's warpgroup instructions, which Blackwell lacks
    if setting == "fa3" and not has_fa3:
        raise ConfigError(
            f"attention_backend fa3 needs compute capability 9.0 (H100, H200), and this GPU has {written(capability)}: "
            "use --attention-backend auto"
        )
    if fp8_kv and capability < FP8_OLDEST:
        raise ConfigError(
            f"a KV cache in fp8 needs compute capability {written(FP8_OLDEST)} or newer (L4, L40S, H100, ...), and "
            f"this GPU has {written(capability)}: use --kv-cache-dtype auto"
        )
    if fp8_kv and setting == "fa3":
        raise ConfigError(
            "attention_backend fa3 takes no KV cache in fp8: use --attention-backend auto or --kv-cache-dtype auto"
        )
    if fp8_kv:
        return ("fa2",)
    if setting != "auto":
        return (setting,)
    return ("fa2", "fa3") if has_fa3 else ("fa2",)


def has_xqa(capability: Capability, setting: AttentionBackend = "auto") -> bool:
    """Whether XQA's kernels attend for decode over a KV cache in 8 bits: those made for Hopper are the fast ones."""
    return capability[0] == 9 and setting == "auto"


def check_fp8(capability: Capability, dtype: str) -> None:
    """Raise ConfigError if a GPU cannot multiply in 8 bits, with results in the model's dtype."""
    if capability < FP8_OLDEST:
        raise ConfigError(
            f"fp8 weights need compute capability {written(FP8_OLDEST)} or newer (L4, L40S, H100, ...), and this GPU "
            f"has {written(capability)}: use a checkpoint that is not quantized, without --quantization"
        )
    if dtype != "bfloat16":
        raise ConfigError(f"on GPUs fp8 weights compute in bfloat16, and the dtype is {dtype}: use --dtype bfloat16")


def has_dependent_launch(capability: Capability) -> bool:
    """Whether a kernel may start before the one that it depends on has ended, and wait for it on the device."""
    return capability >= (9, 0)


def capability_of(device: torch.device) -> Capability:
    """A GPU's. SEESAW_PORTABLE=1 makes newer ones count as the oldest: so any host tests what all of them run."""
    import torch

    capability = torch.cuda.get_device_capability(device)
    return min(capability, OLDEST) if os.environ.get(PORTABLE_VARIABLE) == "1" else capability


def parse_architecture(text: str) -> Capability:
    """The capability that an architecture such as `8.9` or `9.0a` is for. Raises ValueError."""
    major, _, minor = text.rstrip("af").partition(".")
    return int(major), int(minor)


def written(capability: Capability) -> str:
    return ".".join(map(str, capability))
