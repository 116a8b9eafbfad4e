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
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any

from seesaw.engine.kv.room import check_room, shm_folder, too_small
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.wording import as_size

if TYPE_CHECKING:  # who creates one needs no torch, workers have it
    import torch

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
        import torch

        return torch.frombuffer(mmap.mmap(self.fd, self.num_bytes), dtype=torch.uint8)

    def close(self) -> None:
        """Give back the descriptor; mappings stay valid. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def _from_parent(descriptor: Any, num_bytes: int) -> Segment:
    return Segment(descriptor.detach(), num_bytes)


def register(memory: torch.Tensor, cuts: Sequence[int]) -> None:
    """Pin a mapped segment for this process's CUDA device, so that copies run at full speed beside kernels.

    `cuts`, ascending, are offsets that no single copy reaches across: CUDA refuses one over two registered pieces.
    """
    import torch

    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    for start, stop in pieces(memory.numel(), cuts):
        piece = memory[start:stop]
        result = cudart.cudaHostRegister(piece.data_ptr(), piece.numel(), 0)
        if int(result) != 0:
            raise ConfigError(
                f"CUDA refuses to pin {as_size(piece.numel())} of shared host memory (error {int(result)}): "
                "raise the memlock limit (ulimit -l unlimited; docker: --ulimit memlock=-1)"
            )


def pieces(num_bytes: int, cuts: Sequence[int], most_bytes: int = REGISTER_PIECE_BYTES) -> Iterator[tuple[int, int]]:
    """Cut so many bytes into pieces of at most `most_bytes`, as far as there are cuts between; pages stay whole."""
    start = 0
    while num_bytes - start > most_bytes:
        within = bisect_right(cuts, start + most_bytes)
        before = (cuts[i] for i in range(within - 1, -1, -1) if cuts[i] % mmap.PAGESIZE == 0)
        stop = next(before, 0)
        if stop <= start:  # none so near: the next one there is
            behind = (cuts[i] for i in range(within, len(cuts)) if cuts[i] % mmap.PAGESIZE == 0)
            stop = min(next(behind, num_bytes), num_bytes)
        yield start, stop
        start = stop
    if start < num_bytes:
        yield start, num_bytes
