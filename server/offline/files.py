"""The files of a run, seen from outside, before anything slow starts. Used by `server.offline.run`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seesaw.engine.values.errors import ConfigError
from seesaw.server.offline.parquet import check_parquet
from seesaw.server.offline.partial import database


def find_output(output: Path) -> Path:
    """Where the results go. A file is put there when all are known, so a link has to stay, and a device, too.

    Raises ConfigError for what is no file.
    """
    with _told():
        if (output.exists() and not output.is_file()) or output.name == "-":
            raise ConfigError(f"{output} is no file: name a file with --output-file")
        return output.resolve() if output.is_symlink() else output


def check_files(source: Path, output: Path, folder: Path) -> None:
    """Raise ConfigError for what cannot be read or written. `folder` keeps results until all are there."""
    with _told():
        if not source.is_file():
            if source.exists() or source.name == "-":
                raise ConfigError(
                    f"{source} is no file, and would be read twice: write its rows to a file, and name that"
                )
            raise ConfigError(f"there is no file {source}: name one with --input-file")
        if output.exists() and source.samefile(output):
            raise ConfigError(f"{output} is the input: name another --output-file")
        if not output.parent.is_dir():
            raise ConfigError(f"there is no folder {output.parent}: make it, or name another --output-file")
        if not os.access(output.parent, os.W_OK):
            raise ConfigError(f"the folder {output.parent} cannot be written: name another --output-file")
        database(folder).exists()  # raises what a name that is too long does
    check_parquet(source)
    check_parquet(output)


@contextmanager
def _told() -> Iterator[None]:
    """Of a file that one may not look for, it is said which."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be used: {error.strerror}; name another file") from None
