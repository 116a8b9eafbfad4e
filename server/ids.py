"""Ids of what nobody fetches by its id: rows of batches, requests to the engine, calls, items of answers.

Unique, but no secret: whoever sees many can tell the next. Those of files, batches and responses are `uuid4`, which
asks the operating system for each: 2.6 us, where these take 0.4.
"""

from __future__ import annotations

import os
import random

_random = random.Random()  # not the module's, which a program may seed
os.register_at_fork(after_in_child=_random.seed)


def unique_id() -> str:
    """32 hexadecimal digits. Safe across threads."""
    return f"{_random.getrandbits(128):032x}"
