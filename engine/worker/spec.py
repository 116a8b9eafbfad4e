"""What a worker is told at its start. Made by the executor, crosses to the worker's process; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from seesaw.engine.kv.segment import Segment
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.sizing.weights import WeightsWay
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker is told at its start. The first two segments are None where the plan is static."""

    rank: int
    config: EngineConfig
    shape: ModelShape
    checkpoint: Checkpoint
    max_model_len: int
    num_device_blocks: int | None  # None: as many as fit
    num_host_blocks: int
    device: str  # "cpu" or "cuda"
    weights_mode: WeightsWay
    run_dir: Path  # private to the engine: rendezvous and sockets
    weight_segment: Segment | None
    kv_segment: Segment | None
    links_segment: Segment | None  # on the CPU, where ranks have anything to tell each other
    poison_kv: bool = False  # tests fill memory with NaN before its first use
    poison_weights: bool = False

    @property
    def commands_address(self) -> str:
        return f"ipc://{self.run_dir}/commands-{self.rank}"

    @property
    def reports_address(self) -> str:
        return f"ipc://{self.run_dir}/reports"
