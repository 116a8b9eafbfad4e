"""Carries out `Transition` commands on one rank. KV does not move here: swaps carry it (`engine.kv.copies`)."""

from __future__ import annotations

from seesaw.engine.weights.modes import Weights
from seesaw.engine.wire.commands import Transition
from seesaw.engine.worker.runner import Runner


def reshard(transition: Transition, weights: Weights, runner: Runner) -> int:
    """Change this rank to another layout; returns the bytes of weights it moved.

    No step is in flight anywhere. The groups of all layouts exist already, so ranks need not meet: a rank
    that is done first waits where the next step has it receive from another.
    """
    moved_bytes = weights.switch(transition.layout)
    runner.change_layout(transition.layout)
    return moved_bytes
