"""A process's log. Begun by the engine's process, the server and the benchmarks."""

from __future__ import annotations

import logging


def start_log(form: str, level: int | str = logging.INFO) -> None:
    """Write records of at least this level to stderr, each in this form."""
    logging.basicConfig(level=level, format=form)
    # It has statistics to tell at exit, behind the last word.
    logging.getLogger("torch").setLevel(max(logging.WARNING, logging.getLogger().level))
