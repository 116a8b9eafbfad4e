"""A host as it was measured: rates of one of its devices, and what exchanges between them take. Pure values.

`seesaw bench limits --output-json` writes such a file, and `configs/hosts/` has some of hosts that we do not own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seesaw.engine.ops.capability import Capability, parse_architecture
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.json_file import read_object


@dataclass(frozen=True)
class HostProfile:
    """What one device can do at most, and what an exchange with the others costs.

    The last four only matter where there is no such host (`engine.cost.estimate`, `engine.sizing.fit`).
    """

    matmul_flops_per_s: float
    memory_bytes_per_s: float  # bytes read plus bytes written
    link_s: Mapping[str, Mapping[int, float]] = field(default_factory=dict)  # by kind: seconds by a message's bytes
    host_to_device_bytes_per_s: float = math.inf  # of each device, with all of them at it
    device_to_host_bytes_per_s: float = math.inf
    step_s: float = 0.0  # of launching a step, whatever it holds
    capability: Capability | None = None  # None: unknown, as in older files, and nothing is refused for it

    @classmethod
    def from_json(cls, limits: Mapping[str, Any]) -> HostProfile:
        """From what `seesaw bench limits` saves.

        Raises AttributeError, KeyError, TypeError or ValueError if it is something else.
        """
        copies = ("host_to_device_bytes_per_s", "device_to_host_bytes_per_s")
        profile = cls(
            matmul_flops_per_s=float(limits["matmul_flops_per_s"]),
            memory_bytes_per_s=float(limits["memory_bytes_per_s"]),
            link_s={
                kind: {int(size): float(seconds) for size, seconds in by_bytes.items()}
                for kind, by_bytes in limits.get("links", {}).items()
            },
            step_s=float(limits.get("step_s", 0.0)),
            capability=parse_architecture(limits["compute_capability"]) if "compute_capability" in limits else None,
            **{name: float(limits[name]) for name in copies if name in limits},
        )
        # What is divided by, what is interpolated between, and what is added; NaN is nothing of these.
        rates = [
            profile.matmul_flops_per_s,
            profile.memory_bytes_per_s,
            *(float(limits.get(name, 1)) for name in copies),
        ]
        sizes = [size for by_bytes in profile.link_s.values() for size in by_bytes]
        seconds = [profile.step_s, *(seconds for by_bytes in profile.link_s.values() for seconds in by_bytes.values())]
        if not all(math.isfinite(value) and value > 0 for value in (*rates, *sizes)):
            raise ValueError("rates and sizes must be positive")
        if not all(math.isfinite(value) and value >= 0 for value in seconds) or not all(profile.link_s.values()):
            raise ValueError("seconds must not be negative, and a link has some")
        return profile

    def message_s(self, kind: str, num_bytes: float) -> float:
        """Seconds of one message, between the measured sizes and beyond the largest in proportion to its bytes.

        0 if links were not measured.
        """
        if kind not in self.link_s:
            return 0.0
        sizes, seconds = zip(*sorted(self.link_s[kind].items()), strict=True)
        return float(np.interp(num_bytes, sizes, seconds)) * max(1.0, num_bytes / sizes[-1])


def read_profile(path: Path) -> HostProfile:
    """The profile that `seesaw bench limits --output-json` saved. Raises ConfigError."""
    values = read_object(path, "make it with `seesaw bench limits --output-json`")
    try:
        return HostProfile.from_json(values)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise ConfigError(f"{path} does not come from `seesaw bench limits --output-json`: give that file") from None
