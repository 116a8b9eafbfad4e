"""The third interface: who carries out commands. Real workers, or a simulated host with a virtual clock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from seesaw.engine.cost.times import Measured
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.wire.commands import Command, Report


@dataclass(frozen=True)
class Capacity:
    """What the executor has, fixed once it has started. Blocks are counted for each replica's pool."""

    shape: ModelShape
    max_model_len: int
    num_device_blocks: int
    num_host_blocks: int
    device_block_bytes: int
    host_block_bytes: int
    device: str
    weights: str
    times: Measured


class Executor(ABC):
    """Carries out commands on all ranks and reports each rank's completion.

    Owned by one thread (the core's). Commands reach every rank they concern in the order of submission.
    Any failure of a rank surfaces as EngineDeadError from `submit` or `collect`, never as silence.
    """

    capacity: Capacity

    @abstractmethod
    def submit(self, command: Command) -> None:
        """Send a command to the ranks of its replica (a Transition: to all). Never blocks on their work."""

    @abstractmethod
    def collect(self) -> list[Report]:
        """The reports that have arrived, in order per rank. Never blocks. Raises EngineDeadError."""

    @abstractmethod
    def wait_handle(self) -> Any | None:
        """A ZeroMQ socket or file descriptor that turns readable when `collect` may have something.

        None: time is virtual, and `collect` always has something while commands are in flight.
        """

    @abstractmethod
    def now(self) -> float:
        """Seconds on this executor's clock (monotonic or virtual); all scheduling times come from it."""

    @abstractmethod
    def close(self) -> None:
        """End all ranks and give back all they hold. Idempotent; safe after a failure."""
