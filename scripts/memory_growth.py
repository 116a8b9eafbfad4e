"""How the memory of a server's processes grows with what it has done. Used by `soak.py` and `batch_throughput.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil

WARM_SHARE = 0.2  # of what is to be done, after which memory is to be flat


@dataclass
class MemoryGrowth:
    """Resident memory of some processes, and how much was done when it was seen."""

    processes: Sequence[psutil.Process]
    samples: list[tuple[int, list[int]]] = field(default_factory=list)  # what was done, and bytes of each process

    def look(self, num_done: int) -> None:
        self.samples.append((num_done, [process.memory_info().rss for process in self.processes]))

    def slopes(self) -> list[tuple[float, float]]:
        """Of each process: its memory in MB at the end, and by how many bytes it grew for each that was done, both from
        a line through all that was seen once it was warm."""
        warm = [sample for sample in self.samples if sample[0] >= WARM_SHARE * self.samples[-1][0]]
        num_done = np.array([sample[0] for sample in warm], float)
        distances = num_done - num_done.mean()
        grown = []
        for memory in np.array([sample[1] for sample in warm], float).T:
            slope = float(distances @ memory / max(1.0, distances @ distances))
            grown.append((float(memory.mean() + slope * distances[-1]) / 1e6, slope))
        return grown
