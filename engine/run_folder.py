"""Folders for sockets and rendezvous: whoever makes one removes it, and the next one's start removes those of the dead.

Used by whoever starts an engine, and by the executor.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from seesaw.engine.values.errors import ConfigError

PREFIX = "seesaw-"
OWNER = "owner.lock"  # locked for as long as the process lives that made the folder
PROBE_BYTES = 4096  # written into it: a full disk is noticed here, and not by a library

LONGEST_SOCKET_PATH = 107  # bytes, of a Unix socket
LONGEST_BELOW_RUN_DIR = 45  # a nested run folder, or the fork server's, and a socket in it

_locks: dict[Path, int] = {}  # descriptors, by folder


def make_run_dir() -> Path:
    """A private folder (mode 0700) for an engine's sockets and rendezvous. Raises ConfigError if there can be none.

    It is in /tmp where TMPDIR is so deep that the sockets' paths would be too long.
    """
    try:
        temp = tempfile.gettempdir()
        if len(os.fsencode(temp)) + len("/seesaw-12345678") + LONGEST_BELOW_RUN_DIR > LONGEST_SOCKET_PATH:
            temp = "/tmp"
        _sweep(Path(temp))
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=temp))
        try:
            _locks[folder] = _own(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        raise ConfigError(
            f"no temporary files can be made ({error.strerror or error}): make room, or set TMPDIR to another folder"
        ) from None
    return folder


def remove_run_dir(folder: Path) -> None:
    """Also of another process, which has ended. Idempotent."""
    shutil.rmtree(folder, ignore_errors=True)
    lock = _locks.pop(folder, None)
    if lock is not None:
        os.close(lock)


def keep_multiprocessing_in(folder: Path) -> None:
    """Have `multiprocessing` put what it makes from now on, such as the fork server's socket, into this folder."""
    # It looks here first, and else makes a folder that nobody removes if this process is killed.
    multiprocessing.current_process()._config["tempdir"] = str(folder)  # type: ignore[attr-defined]


def _own(folder: Path) -> int:
    """Show that somebody lives here; returns the descriptor that does so until the end of this process."""
    nascent = folder / f"{OWNER}.new"  # under its name it is locked from the first moment
    lock = os.open(nascent, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, bytes(PROBE_BYTES))
        nascent.rename(folder / OWNER)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _sweep(temp: Path) -> None:
    """Remove the folders whose owners were killed before they could."""
    for lock_file in temp.glob(f"{PREFIX}*/{OWNER}"):
        with suppress(OSError):  # another user's, or gone just now
            lock = os.open(lock_file, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_file.parent, ignore_errors=True)
            finally:
                os.close(lock)
