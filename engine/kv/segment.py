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
from typing import Any

import torch

from engine.errors import ConfigError
from engine.kv.room import check_room, shm_folder, too_small
from engine.wording import as_size

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
                raise too_small(num_bytes, what) from None
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
