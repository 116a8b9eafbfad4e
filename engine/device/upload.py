"""Small host tensors on their way to a device. Used by the operators and the runner, every step."""

from __future__ import annotations

import torch


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor on a device, in stream order; the host does not wait.

    A copy from pageable memory would wait for the device. Pinned memory comes from torch's caching allocator,
    which hands it out again only after the copy.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def download(tensor: torch.Tensor) -> torch.Tensor:
    """A device tensor in host memory: there once an event recorded behind this call has come."""
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
