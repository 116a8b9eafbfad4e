"""A step that was launched on one rank, and what it tells once it is done. Made by the runner."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from seesaw.engine.device.moments import Moment, elapsed_s
from seesaw.engine.sampling.logprobs import Logprobs
from seesaw.engine.wire.commands import Report
from seesaw.engine.wire.logprobs import PromptLogprobs


@dataclass
class Sampled:
    """What a step tells, on its way to the host, on the sampling rank only."""

    tokens: torch.Tensor | None = None  # int64 [rows that are sampled]
    logprobs: Logprobs | None = None  # of some of these
    prompts: list[tuple[int, Logprobs]] = field(default_factory=list)  # of prompts, by chunk and position


@dataclass(frozen=True)
class Completion:
    """A launched step.

    On the CPU a launched step is done; on CUDA it is once `end` has come. `start` lies behind whatever the step had to
    wait for, so what is between the two is this rank's own work.
    """

    sampled: Sampled
    start: Moment
    end: Moment

    def busy_s(self) -> float:
        """Seconds that a step which is done kept this rank's device busy: without the wait for its neighbours."""
        return elapsed_s(self.start, self.end)

    def report(self, rank: int, id: int) -> Report:
        """Of a step that is done."""
        sampled = self.sampled
        return Report(
            rank,
            id,
            sampled.tokens.tolist() if sampled.tokens is not None else [],
            seconds=self.busy_s(),
            logprobs=sampled.logprobs.told() if sampled.logprobs is not None else {},
            prompts=[
                PromptLogprobs(chunk, piece.places[0], list(piece.told().values())) for chunk, piece in sampled.prompts
            ],
        )
