"""The little that differs between devices: when a capture's tensors are ready, and how figures reach the host.

On a GPU the recorder's thread works on a stream of its own. A hook records an event on the engine's stream; the
thread's stream waits for it, reduces, and copies into pinned memory; the thread then waits for that copy. Nobody
waits on the engine's stream. A capture holds references to its tensors until then, so that the allocator cannot
hand their memory to the engine's next step.

The CUDA half has not run on a GPU yet; the CPU half and everything that uses either has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Mark: TypeAlias = Any
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

# float32 bytes reduced at once: on a CPU small enough to stay in a core's cache.
_CPU_SLICE_BYTES = 2 << 20
_CUDA_SLICE_BYTES = 256 << 20


class Device(Protocol):
    """Where captured tensors lie.

    Attributes:
        slice_bytes: float32 bytes of logits to reduce at once.
    """

    slice_bytes: int

    def after(self, ready: Mark | None) -> AbstractContextManager[Any]:
        """Returns a context whose work sees the tensors of a capture complete."""

    def to_host(self, tensors: Mapping[str, Tensor]) -> Arrays:
        """Returns their values; waits for the work of the current context, and for nothing else."""

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        """Returns the array on this device, without waiting."""


def mark(tensor: Tensor) -> Mark | None:
    """Returns what tells when the work enqueued so far on the tensor's device is done; called in a hook."""
    if tensor.device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(tensor.device))
    return event


def device_of(tensor: Tensor) -> Device:
    """Returns the device that a tensor lies on, made once a device."""
    key = str(tensor.device)
    device = _devices.get(key)
    if device is None:
        device = _devices[key] = CudaDevice(tensor.device) if tensor.device.type == "cuda" else CpuDevice()
    return device


class CpuDevice:
    """Tensors in host memory: always ready, and read where they lie."""

    slice_bytes = _CPU_SLICE_BYTES

    def after(self, ready: Mark | None) -> AbstractContextManager[Any]:  # noqa: ARG002 - as in the protocol
        return contextlib.nullcontext()

    def to_host(self, tensors: Mapping[str, Tensor]) -> Arrays:
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array)


class CudaDevice:
    """Tensors on a GPU: worked on in a side stream, fetched through pinned memory that is used over and over."""

    slice_bytes = _CUDA_SLICE_BYTES

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._pinned = torch.empty(0, dtype=torch.uint8)

    @contextlib.contextmanager
    def after(self, ready: Mark | None) -> Any:
        with torch.cuda.stream(self._stream):
            if ready is not None:
                self._stream.wait_event(ready)
            yield

    def to_host(self, tensors: Mapping[str, Tensor]) -> Arrays:
        offsets, size = _packed({name: tensor.nbytes for name, tensor in tensors.items()})
        if self._pinned.numel() < size:
            self._pinned = torch.empty(max(size, 2 * self._pinned.numel()), dtype=torch.uint8, pin_memory=True)
        views = {}
        for name, tensor in tensors.items():
            place = self._pinned[offsets[name] : offsets[name] + tensor.nbytes]
            views[name] = place.view(tensor.dtype).view(tensor.shape)
            views[name].copy_(tensor, non_blocking=True)
        self._copied.record(self._stream)
        self._copied.synchronize()
        # The next capture overwrites the pinned memory.
        return {name: np.array(view.numpy()) for name, view in views.items()}

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).pin_memory().to(self._device, non_blocking=True)


def _packed(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Returns where each of some buffers starts in one, aligned to 16 bytes, and how long it is."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // 16) * 16
    return offsets, end


_devices: dict[str, Device] = {}
