"""Shared host memory: a segment for the weight store, one for the KV pool, and one for what ranks on CPUs tell each
other, mapped by every rank.

The executor creates a segment and hands it to the workers as they start (it pickles as a file descriptor);
workers `map` it. A segment is a tmpfs file that never has a name: no crash, at any moment, leaves anything
behind in /dev/shm, and nobody has to unlink it. Its memory is the processes' that hold it open.

The large ones are allocated at creation. A tmpfs that runs out later kills whoever touches the page (SIGBUS), so
too little room must show here, as one sentence.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import torch

from engine.errors import ConfigError
from engine.wording import GIB, as_size

REGISTER_PIECE_BYTES = 64 << 30  # cudaHostRegister fails on larger ranges on some drivers


class Segment:
    """A shared, anonymous piece of memory. Pickles only while a child process is started."""

    def __init__(self, fd: int, num_bytes: int) -> None:
        self.fd = fd
        self.num_bytes = num_bytes

    @classmethod
    def create(cls, num_bytes: int, what: str) -> Segment:
        """Raises ConfigError, naming `what` and the room that is missing, if the host has too little."""
        check_room(num_bytes, what)
        with tempfile.TemporaryFile(dir=shm_folder()) as file:  # O_TMPFILE: it never has a name
            try:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                    raise
                raise _too_small(num_bytes, what) from None
            return cls(os.dup(file.fileno()), num_bytes)

    @classmethod
    def create_sparse(cls, num_bytes: int) -> Segment:
        """Zeros that take memory as they are written to, like a process's own: of the host, not of /dev/shm."""
        fd = os.memfd_create("seesaw")
        os.truncate(fd, num_bytes)
        return cls(fd, num_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_parent, (DupFd(self.fd), self.num_bytes)

    def map(self) -> torch.Tensor:
        """All of it as a flat uint8 tensor, which keeps the mapping alive."""
        return torch.frombuffer(mmap.mmap(self.fd, self.num_bytes), dtype=torch.uint8)

    def close(self) -> None:
        """Give back the descriptor; mappings stay valid. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def _from_parent(descriptor: Any, num_bytes: int) -> Segment:
    return Segment(descriptor.detach(), num_bytes)


def register(memory: torch.Tensor) -> None:
    """Pin a mapped segment for this process's CUDA device, so that copies run at full speed beside kernels."""
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    for start in range(0, memory.numel(), REGISTER_PIECE_BYTES):
        piece = memory[start : start + REGISTER_PIECE_BYTES]
        result = cudart.cudaHostRegister(piece.data_ptr(), piece.numel(), 0)
        if int(result) != 0:
            raise ConfigError(
                f"CUDA refuses to pin {as_size(piece.numel())} of shared host memory (error {int(result)}): "
                "raise the memlock limit (ulimit -l unlimited; docker: --ulimit memlock=-1)"
            )


def shm_folder() -> Path:
    """The tmpfs that holds segments. SEESAW_SHM_DIR overrides it, for tests."""
    return Path(os.environ.get("SEESAW_SHM_DIR", "/dev/shm"))


def check_room(num_bytes: int, what: str) -> None:
    """Raise ConfigError unless the tmpfs, the cgroup and the host have `num_bytes` left."""
    folder = shm_folder()
    try:
        stat = os.statvfs(folder)
    except OSError:
        raise ConfigError(f"there is no {folder} for {what}: mount a tmpfs there") from None
    if stat.f_bavail * stat.f_frsize < num_bytes:
        raise _too_small(num_bytes, what)
    check_memory(
        num_bytes, what, "raise the limit, lower --host-kv-bytes, or use one layout, which needs no host memory"
    )


def check_memory(num_bytes: int, what: str, instead: str) -> None:
    """Raise ConfigError, proposing to do something else `instead`, unless cgroup and host have `num_bytes` left."""
    for limit, room in (("the container's memory limit", _cgroup_room_bytes()), ("this host", _host_room_bytes())):
        if room is not None and room < num_bytes:
            raise ConfigError(
                f"{limit} leaves {as_size(room)} of memory but {what} would take {as_size(num_bytes)}: {instead}"
            )


def _too_small(num_bytes: int, what: str) -> ConfigError:
    folder = shm_folder()
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    used = stat.f_blocks * stat.f_frsize - free
    gib = -(-(used + num_bytes) // GIB)
    return ConfigError(
        f"{folder} has {as_size(free)} free but {what} would take {as_size(num_bytes)}: enlarge it "
        f"(as root: mount -o remount,size={gib}g {folder}; docker: --shm-size={gib}g) or lower --host-kv-bytes"
    )


def _host_room_bytes() -> int | None:
    for line in _read("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    return None


def _cgroup_room_bytes() -> int | None:
    """What the memory limit of this process's cgroup and of those above it leaves; None without a limit."""
    rooms = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, limit, usage, cache = Path("/sys/fs/cgroup"), "memory.max", "memory.current", "file"
        elif controllers == "memory":  # version 1
            root, limit, usage = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_cache"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in [group, *group.parents]:
            limit_text = _read(folder / limit).strip()
            if limit_text.isdigit():
                rooms.append(int(limit_text) - int(_read(folder / usage) or 0) + _reclaimable_bytes(folder, cache))
            if folder == root:
                break
    return max(0, min(rooms)) if rooms else None


def _reclaimable_bytes(folder: Path, cache: str) -> int:
    """Page cache that the kernel drops under pressure: counted as used, yet room. tmpfs pages are not."""
    fields = dict(line.split(maxsplit=1) for line in _read(folder / "memory.stat").splitlines())
    shmem = "shmem" if cache == "file" else "total_shmem"
    return max(0, int(fields.get(cache, 0)) - int(fields.get(shmem, 0)))


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
