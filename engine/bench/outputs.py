"""Where benchmarks save what they found. Called by `server.bench` and `engine.bench.limits`."""

from __future__ import annotations

import os
from pathlib import Path

from seesaw.engine.values.errors import ConfigError


def check_output(path: Path | None) -> None:
    """Raise ConfigError, before anything is measured, if the file given as `--output-json` could not be written."""
    if path is None:
        return
    place = path if path.exists() else path.parent
    if path.is_dir() or not (path.parent.is_dir() and os.access(place, os.W_OK)):
        raise ConfigError(f"cannot write --output-json {path}: choose a file in a folder that exists and is writable")
