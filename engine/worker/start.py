"""A worker's start, which takes no torch to name: whoever starts workers has none. Used by `engine.executor.ranks`."""

from __future__ import annotations

from seesaw.engine.worker.spec import WorkerSpec


def run_worker(spec: WorkerSpec) -> None:
    """The process's main function."""
    from seesaw.engine.worker import worker  # the fork server has it

    worker.run_worker(spec)
