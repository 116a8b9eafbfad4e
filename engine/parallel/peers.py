"""Device memory that all shards of a stage can read and write over their links. Used by `engine.model.peer_sums`.

Allocated and mapped by torch's symmetric memory. Never with NVLink multicast: on shared hosts that can put GPUs out of
service.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory

from seesaw.engine.parallel.groups import TensorGroup
from seesaw.engine.parallel.process_groups import ShardGroup
from seesaw.engine.run_folder import LONGEST_SOCKET_PATH
from seesaw.engine.values.config import CustomAllReduce
from seesaw.engine.values.errors import ConfigError

os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"


def can_share(group: TensorGroup, device: torch.device, custom_all_reduce: CustomAllReduce = "auto") -> bool:
    """Whether the shards' GPUs reach each other's memory with atomics, as over NVLink, and may.

    The setting `off` forbids it here alone, `NCCL_P2P_DISABLE=1` here as in NCCL.
    """
    if custom_all_reduce == "off":
        return False
    if not isinstance(group, ShardGroup) or device.type != "cuda" or dist.get_backend(group.process_group) != "nccl":
        return False
    if os.environ.get("NCCL_P2P_DISABLE", "0") not in ("", "0"):
        return False
    # Of all pairs, so that every shard comes to the same answer: what follows is collective.
    pairs = permutations(group.ranks, 2)
    return all(torch.cuda.can_device_access_peer(*pair) and has_atomics(*pair) for pair in pairs)


def has_atomics(gpu: int, owner: int) -> bool:
    """Whether a GPU's atomics on another one's memory are atomic to that one, too.

    Over PCIe a compare-and-swap is a read and then a write, and one that fails may write back a flag that the memory's
    owner has taken down meanwhile.
    """
    from cuda.bindings import runtime

    attribute = runtime.cudaDeviceP2PAttr.cudaDevP2PAttrNativeAtomicSupported
    error, value = runtime.cudaDeviceGetP2PAttribute(attribute, gpu, owner)
    return bool(error == runtime.cudaError_t.cudaSuccess and value == 1)


@contextmanager
def short_socket_paths() -> Iterator[None]:
    """Have torch pass descriptors over sockets in /tmp where its temporary folder is too deep for a socket.

    It copies the path, `symm_mem-` and a process id in that folder, into the socket's address without looking at its
    length, and so overwrites its stack.
    """
    before = os.environ.get("TMPDIR")
    folder = next((os.environ[name] for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR") if name in os.environ), "/tmp")
    if len(os.fsencode(folder)) + len("/symm_mem-1234567") <= LONGEST_SOCKET_PATH:
        yield
        return
    os.environ["TMPDIR"] = "/tmp"
    try:
        yield
    finally:
        del os.environ["TMPDIR"]
        if before is not None:
            os.environ["TMPDIR"] = before


class PeerTensor:
    """A `[rows, columns]` tensor of each shard, and its address on every shard.

    `addresses` is int64 `[size]`, on the device, in shard order.
    """

    def __init__(self, group: ShardGroup, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> None:
        """Collective: all shards call it with the same sizes. Zeros. Raises ConfigError."""
        try:
            memory = symmetric_memory.empty(rows, columns * dtype.itemsize, dtype=torch.uint8, device=device)
            # The handle keeps the mappings alive.
            with short_socket_paths():
                self._handle = symmetric_memory.rendezvous(memory, group.process_group)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"the GPUs of a tensor-parallel stage cannot map each other's memory ({reason}): "
                "use --custom-all-reduce off to do without"
            ) from None
        self.local: torch.Tensor = memory.zero_().view(dtype)
        self.addresses = torch.tensor(list(self._handle.buffer_ptrs), dtype=torch.int64, device=device)
        # No shard may write what its owner has yet to zero.
        torch.cuda.synchronize(device)
        dist.barrier(group.process_group)
