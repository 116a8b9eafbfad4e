"""What the ranks compute on, and why torch can use no GPU where it cannot. Makes no CUDA context.

Called by `engine.executor.processes`, and by `engine.bench.limits`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.wording import count

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpus:
    """Those of this host that torch can use."""

    count: int
    why_none: str  # as `why_no_gpu`


def choose_device(config: EngineConfig, look: Callable[[], Gpus], say: Callable[[str], None]) -> str:
    """`cuda` or `cpu`. Raises ConfigError if the plan needs more GPUs than `look` finds.

    Falling back to the CPU is a line to `say`, and a warning where the host has GPUs.
    """
    if config.device == "cpu":
        return "cpu"
    gpus = look()
    if config.device == "auto" and not gpus.count:
        if has_nvidia_device():
            logger.warning("running on the CPU, although this host has NVIDIA GPUs: %s", gpus.why_none)
        else:
            say("this host has no GPU that torch can use: running on the CPU")
        return "cpu"
    needs = f"plan {config.plan} needs {count(config.plan.world_size, 'GPU')}"
    if not gpus.count:
        raise ConfigError(f"{needs}, and {gpus.why_none}, or choose --device cpu")
    if gpus.count < config.plan.world_size:
        raise ConfigError(f"{needs} but this host has {gpus.count}: choose smaller layouts, or --device cpu")
    return "cuda"


def find_gpus() -> Gpus:
    """Imports torch."""
    import torch

    return Gpus(torch.cuda.device_count(), why_no_gpu())  # asks NVML; makes no CUDA context


def why_no_gpu() -> str:
    """For where torch finds no GPU: the reason as far as it is known, and what to change. Imports torch."""
    import torch

    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is a CPU build: on a host with GPUs, remove .venv and run scripts/setup, "
            "or install a CUDA build"
        )
    return "torch finds none that it can use: look at nvidia-smi and at CUDA_VISIBLE_DEVICES"


def has_nvidia_device() -> bool:
    """Whether the driver shows this host, or container, a GPU."""
    return any(Path("/dev").glob("nvidia[0-9]*"))
