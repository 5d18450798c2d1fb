"""Where tensors live: the one place that knows what would make a host wait for a device."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["from_host", "is_on_host", "scratch", "widened"]

_HELD_BYTES = 16 << 20
_HELD_VIEWS = 256


def is_on_host(tensor: torch.Tensor) -> bool:
    """Whether values may decide what runs next; elsewhere, reading one waits for all work queued before it."""
    return tensor.device.type == "cpu"


def from_host(values: Sequence[float] | npt.NDArray[Any], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Copies host values to a device; to CUDA out of pinned memory, so that the host does not wait for the copy."""
    tensor = torch.from_numpy(np.array(values)).to(dtype)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class _Held(threading.local):
    def __init__(self) -> None:
        self.buffers: dict[int, torch.Tensor] = {}
        self.views: dict[tuple[int, torch.Size, torch.dtype], torch.Tensor] = {}


_held = _Held()


def scratch(like: torch.Tensor, slot: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Returns memory in the shape of a tensor, for results that do not outlive the caller.

    On a host a thread keeps its buffers: memory fresh from the system costs more to touch first than a pass over
    it. Two calls with one slot share memory. A device's allocator keeps memory anyhow.
    """
    num_bytes = like.numel() * dtype.itemsize
    if not is_on_host(like) or num_bytes > _HELD_BYTES:
        return torch.empty(like.shape, dtype=dtype, device=like.device)
    view = _held.views.get((slot, like.shape, dtype))
    if view is None:
        with torch.inference_mode(False):  # what is made in that mode cannot be written to outside of it
            view = _hold(slot, num_bytes).view(dtype).view(like.shape)
        _held.views[slot, like.shape, dtype] = view
    return view


def _hold(slot: int, num_bytes: int) -> torch.Tensor:
    buffer = _held.buffers.get(slot)
    if buffer is None or buffer.numel() < num_bytes:
        buffer = _held.buffers[slot] = torch.empty(num_bytes, dtype=torch.uint8)
        _held.views.clear()
    if len(_held.views) >= _HELD_VIEWS:
        _held.views.clear()
    return buffer[:num_bytes]


def widened(tensor: torch.Tensor, slot: int) -> torch.Tensor:
    """Returns float32 values, contiguous: the tensor itself where it is so, else scratch memory."""
    tensor = tensor.detach()
    if tensor.dtype == torch.float32 and tensor.is_contiguous():
        return tensor
    return scratch(tensor, slot).copy_(tensor)
