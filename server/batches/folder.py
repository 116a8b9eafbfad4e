"""The folder `--data-dir`: where files, and the inputs and logs of batches that run, lie in it.

Whatever is here and not in the database was being made when the server ended, and is removed at the next start.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from seesaw.engine.values.errors import ConfigError
from seesaw.server.config import ServerConfig


class FolderLock:
    """Keeps other processes out of a folder, as long as they ask for it too; until `close`, or the process ends."""

    def __init__(self, path: Path) -> None:
        """Raises BlockingIOError if another one has it."""
        self._file = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise

    def close(self) -> None:
        os.close(self._file)


class DataFolder:
    """The folder of one server: others are kept out until `close`.

    `files/ID` are whole files; `uploads/ID` become them by renaming; `batches/ID/` has `input.jsonl` and `results.log`
    of a batch that has not ended.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if it cannot be used."""
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts are nobody else's
            for folder in (self._files, self._uploads, self._batches):
                folder.mkdir(exist_ok=True)
            self._lock = FolderLock(path)
        except BlockingIOError:
            raise ConfigError(f"data_dir {path} is used by another server: end that, or name another folder") from None
        except OSError as error:
            raise ConfigError(
                f"data_dir {path} cannot be used: {error.strerror}; name a folder that can be written"
            ) from None

    def close(self) -> None:
        self._lock.close()

    @property
    def database(self) -> Path:
        return self.path / "jobs.sqlite"

    def file(self, id: str) -> Path:
        return self._files / id

    def upload(self, id: str) -> Path:
        return self._uploads / id

    def input(self, batch: str) -> Path:
        return self._batches / batch / "input.jsonl"

    def log(self, batch: str) -> Path:
        return self._batches / batch / "results.log"

    def keep_input(self, file: str, batch: str) -> None:
        """Give a batch its input, which outlives the file that it is. Raises FileNotFoundError without the file."""
        folder = self._batches / batch
        folder.mkdir()
        try:
            os.link(self.file(file), self.input(batch))
        except OSError:
            folder.rmdir()
            raise
        sync_folder(folder)
        sync_folder(self._batches)

    def publish(self, id: str) -> None:
        """Make a whole file of an upload that is on the disk."""
        os.rename(self.upload(id), self.file(id))
        sync_folder(self._files)

    def drop_batch(self, batch: str) -> None:
        """Remove all of a batch but its files."""
        shutil.rmtree(self._batches / batch, ignore_errors=True)

    def clean(self, files: set[str], batches: set[str]) -> None:
        """Remove all but these files, and these batches' inputs and logs."""
        for upload in self._uploads.iterdir():
            upload.unlink()
        for file in self._files.iterdir():
            if file.name not in files:
                file.unlink()
        for batch in self._batches.iterdir():
            if batch.name not in batches:
                self.drop_batch(batch.name)

    @property
    def _files(self) -> Path:
        return self.path / "files"

    @property
    def _uploads(self) -> Path:
        return self.path / "uploads"

    @property
    def _batches(self) -> Path:
        return self.path / "batches"


def check_data_dir(config: ServerConfig) -> None:
    """Raise ConfigError if the folder cannot be used, or is used. Whoever opens it later may still find that."""
    if config.data_dir:
        DataFolder(data_path(config)).close()


def data_path(config: ServerConfig) -> Path:
    return Path(config.data_dir).expanduser()


def sync_file(file: BinaryIO) -> None:
    """What was written to it is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Names in it are on the disk."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
