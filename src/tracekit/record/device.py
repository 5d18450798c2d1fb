"""Where captured tensors lie: when they are ready, and how figures reach the host.

In host memory a tensor is ready as soon as the hook has it, and is read where it lies. On a GPU the recorder's
thread works on a stream of its own:

    1. the hook records an event on the engine's stream, after everything that fills the tensors;
    2. the thread's stream waits for that event, reduces, and copies the figures into pinned memory;
    3. the thread, and nothing else, waits for that copy.

The engine's stream waits for nobody. Lifetimes: a capture holds references to its tensors until step 3 is over, so
the allocator cannot hand their memory to the engine's next step; what the engine overwrites earlier than that
(buffers of CUDA graphs, logits that are edited in place) the adapter clones, on the engine's stream.

`CudaStreams` is the only code of the recorder that calls a GPU's runtime. It has not run on a GPU yet; everything
around it is tested with streams that only keep order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Mark: TypeAlias = Any
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

# float32 bytes reduced at once. On a CPU 2 to 16 MiB take as long a row, and more rows are fewer calls into torch,
# after each of which the recorder's thread contends with the engine's for the interpreter.
_HOST_SLICE_BYTES = 8 << 20
_SIDE_SLICE_BYTES = 128 << 20
_ALIGNMENT = 16


class Device(Protocol):
    """Where captured tensors lie.

    Attributes:
        slice_bytes: float32 bytes of logits to reduce at once.
        reads_freely: whether a value may decide what is computed next; on a GPU that would wait for it.
    """

    slice_bytes: int
    reads_freely: bool

    def mark(self) -> Mark | None:
        """Returns what tells when the work enqueued so far is done; called in a hook."""

    def after(self, ready: Mark | None) -> AbstractContextManager[Any]:
        """Returns a context whose work sees the tensors of a capture complete."""

    def to_host(self, tensors: Mapping[str, Tensor]) -> Arrays:
        """Returns their values; waits for the work of the current context, and for nothing else."""

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        """Returns the array on this device, without waiting."""


class Streams(Protocol):
    """What a GPU's runtime is asked for."""

    def record(self) -> Mark:
        """Returns an event at the end of the current stream, which is the engine's."""

    def on_side_stream(self) -> AbstractContextManager[Any]:
        """Returns a context in which work goes to the recorder's stream."""

    def wait_for(self, event: Mark) -> None:
        """Lets the recorder's stream wait for an event."""

    def finish(self) -> None:
        """Blocks this thread until the recorder's stream has done what it was given so far."""

    def pinned(self, num_bytes: int) -> Tensor:
        """Returns page-locked host memory, uint8."""

    def upload(self, tensor: Tensor) -> Tensor:
        """Copies a host tensor to the device, without waiting."""


class HostDevice:
    """Host memory."""

    slice_bytes = _HOST_SLICE_BYTES
    reads_freely = True

    def mark(self) -> Mark | None:
        return None

    def after(self, ready: Mark | None) -> AbstractContextManager[Any]:  # noqa: ARG002 - as in the protocol
        return contextlib.nullcontext()

    def to_host(self, tensors: Mapping[str, Tensor]) -> Arrays:
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array)


class SideStreamDevice:
    """A GPU, worked on in a stream of its own.

    Figures come to the host through one pinned buffer, which grows to the largest step and is used over and over:
    the thread that fills it also empties it before it goes on.
    """

    slice_bytes = _SIDE_SLICE_BYTES
    reads_freely = False

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._pinned: Tensor | None = None

    def mark(self) -> Mark | None:
        return self._streams.record()

    @contextlib.contextmanager
    def after(self, ready: Mark | None) -> Iterator[None]:
        with self._streams.on_side_stream():
            if ready is not None:
                self._streams.wait_for(ready)
            try:
                yield
            finally:
                # References are let go after this: nothing of the capture may be in use then, also after a failure.
                self._streams.finish()

    def to_host(self, tensors: Mapping[str, Tensor]) -> Arrays:
        offsets, size = packed({name: tensor.nbytes for name, tensor in tensors.items()})
        if self._pinned is None or self._pinned.numel() < size:
            self._pinned = self._streams.pinned(max(size, 0 if self._pinned is None else 2 * self._pinned.numel()))
        views = {}
        for name, tensor in tensors.items():
            place = self._pinned[offsets[name] : offsets[name] + tensor.nbytes]
            views[name] = place.view(tensor.dtype).view(tensor.shape)
            views[name].copy_(tensor, non_blocking=True)
        self._streams.finish()
        return {name: np.array(view.numpy()) for name, view in views.items()}

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        return self._streams.upload(torch.from_numpy(array))


class CudaStreams:
    """CUDA, or ROCm under the same name."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def record(self) -> Mark:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def on_side_stream(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream)

    def wait_for(self, event: Mark) -> None:
        self._stream.wait_event(event)

    def finish(self) -> None:
        self._done.record(self._stream)
        self._done.synchronize()

    def pinned(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def upload(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self._device, non_blocking=True)


def device_of(tensor: Tensor) -> Device:
    """Returns the device that a tensor lies on."""
    device = _devices.get(tensor.device)
    if device is None:
        kind = tensor.device.type
        device = _devices[tensor.device] = (
            SideStreamDevice(CudaStreams(tensor.device)) if kind == "cuda" else HostDevice()
        )
    return device


def mark(tensor: Tensor) -> Mark | None:
    """Returns what tells when the work enqueued so far on the tensor's device is done; called in a hook."""
    return device_of(tensor).mark()


def packed(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Returns where each of some buffers starts in one, aligned to 16 bytes, and how long that one is."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


_devices: dict[torch.device, Device] = {}
