"""JSON files of others: what is read is of bounded size, and one object. No torch.

Used for what comes with checkpoints (`engine.model`, `engine.sampling.defaults`), for config files (`server.settings`)
and for hosts' profiles (`engine.cost.profile`).
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.wording import MIB, as_size

# Some millions of empty lists, which take thirty times their text, are all that can come of it. A config.json has some
# KiB, the index of the largest checkpoints 10 MiB.
MOST_BYTES = 32 * MIB


def read_object(path: Path, otherwise: str, *, what: str = "", may_be_pipe: bool = False) -> dict[str, Any]:
    """The object in a file. `what` names it in errors, as in "the config file"; only a regular one is read, unless it
    `may_be_pipe`, for which nobody may ever write. Raises ConfigError, saying what to do `otherwise`, if it holds none.
    """
    where = f"{what} {path}".lstrip()
    try:
        if not may_be_pipe and not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{where} is no regular file: {otherwise}")
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {where} ({error.strerror}): {otherwise}") from None
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{where} has more than {as_size(MOST_BYTES)}: {otherwise}")
    return parse_object(text, where, otherwise)


def parse_object(text: bytes, where: str, otherwise: str) -> dict[str, Any]:
    """As `read_object`, of a text that was read."""
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise ConfigError(f"{where} is not valid JSON ({error}): {otherwise}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where} holds no JSON object: {otherwise}")
    return value
