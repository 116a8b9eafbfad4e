"""Allocations that fail although all was counted before: one sentence instead of a traceback. Used while workers start
(`engine.worker.worker`), and by `engine.bench.limits`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.wording import as_size

# How libraries that allocate by themselves say it: CUDA, NCCL, cuBLAS, and torch on the CPU.
SIGNS = ("out of memory", "alloc_failed", "not enough memory", "can't allocate memory")


@contextmanager
def memory_errors(what: str, device: torch.device, instead: str) -> Iterator[None]:
    """Raise ConfigError, proposing to do something else `instead`, where memory for `what` runs out in the block."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not _is_out_of_memory(error):
            raise
        raise ConfigError(f"{device} ran out of memory for {what}{_free(device)}: {instead}") from None


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in SIGNS)


def _free(device: torch.device) -> str:
    """What is left now, as far as the device still answers."""
    if device.type != "cuda":
        return ""
    try:
        return f" ({as_size(torch.cuda.mem_get_info(device)[0])} free)"
    except RuntimeError:
        return ""
