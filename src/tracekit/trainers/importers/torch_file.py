"""Reads files of `torch.save` without torch, and without running anything that they name.

The format is that of torch's serialisation since 1.6: a ZIP archive with `data.pkl`, whose tensors refer to
`data/<key>`. Objects of classes that are not plain data become `Opaque`.
"""

from __future__ import annotations

import collections
import importlib
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.errors import InputError

_MULTIARRAY = "numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray"
_DTYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bf16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class Opaque:
    """Stands for an object of a class that is not plain data; holds nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Opaque:  # noqa: ARG004
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


@dataclass(frozen=True)
class Storage:
    """The bytes of a tensor, in the archive."""

    archive: zipfile.ZipFile
    name: str
    dtype: str


@dataclass(frozen=True)
class Tensor:
    """A tensor whose bytes are read when they are wanted."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def load(self) -> npt.NDArray[Any]:
        """Returns its values; bf16 as float32.

        Raises:
            InputError: the file is damaged.
        """
        data = self.storage.archive.read(self.storage.name)
        if self.storage.dtype == "bf16":
            flat: npt.NDArray[Any] = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            flat = np.frombuffer(data, np.dtype(self.storage.dtype).newbyteorder("<"))
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        if 0 in self.shape:
            return np.empty(self.shape, flat.dtype)
        if min((self.offset, *self.stride), default=0) < 0 or last >= len(flat):
            raise InputError(f"{self.storage.archive.filename}: tensor {self.storage.name} ends before its shape does")
        steps = tuple(step * flat.itemsize for step in self.stride)
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps).copy()


def read_torch_file(path: Path) -> Any:
    """Returns what was saved, with `Tensor` for tensors.

    Raises:
        InputError: the file is not of this format.
    """
    try:
        archive = zipfile.ZipFile(path)
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl")
        prefix = root[: -len("data.pkl")]
        if archive.read(f"{prefix}byteorder").strip() == b"big":
            raise InputError(f"{path} was saved on a big-endian machine")
        return _Unpickler(archive, prefix).load()
    except (zipfile.BadZipFile, StopIteration, KeyError, pickle.UnpicklingError, EOFError, TypeError) as error:
        raise InputError(f"{path} is not a file of torch.save ({type(error).__name__}: {error})") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(archive.open(f"{prefix}data.pkl"))
        self._archive = archive
        self._prefix = prefix

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _rebuilt
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module in ("numpy._core.multiarray", "numpy.core.multiarray") and name in ("scalar", "_reconstruct"):
            return getattr(importlib.import_module(_MULTIARRAY), name)
        if module == "numpy" and name in ("dtype", "ndarray"):
            return getattr(np, name)
        if module == "builtins" and name in ("set", "frozenset", "complex", "slice", "range"):
            return getattr(__import__("builtins"), name)
        return Opaque

    def persistent_load(self, reference: Any) -> Storage:
        _, dtype, key, *_ = reference
        if not isinstance(dtype, str):
            raise pickle.UnpicklingError(f"a storage of an unknown dtype ({key})")
        return Storage(self._archive, f"{self._prefix}data/{key}", dtype)


def _rebuilt(storage: Storage, offset: int, shape: Any, stride: Any, *_: Any) -> Tensor:
    return Tensor(storage, offset, tuple(shape), tuple(stride))
