"""What a trainer hands in (tensors, arrays, lists; ragged, padded or packed) as flat arrays, row after row.

Shapes: B rows, T the longest row, N tokens of all rows that are kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.errors import InputError

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Which of the values that were handed in belong to which row.

    Attributes:
        counts: int64 [B], how many tokens of each row are kept.
        lengths: int64 [B], how many values each row of a ragged or packed input has; None for a padded one.
        shape: of the padded or packed input; None for a ragged one.
        kept: bool, of that shape, which values are kept; None keeps all.
    """

    counts: Ints
    lengths: Ints | None
    shape: tuple[int, ...] | None
    kept: Array | None

    def flatten(self, name: str, values: Any) -> Array:
        """Returns a copy of one value a kept token, float32 or bool [N].

        Args:
            name: the argument, for messages.
            values: laid out as the logprobs are, or one value a row, or one for all.

        Raises:
            InputError: values of another shape.
        """
        if isinstance(values, bool | int | float):
            return np.repeat(np.asarray(values, np.float32), int(self.counts.sum()))
        if _is_ragged(values):
            lengths = np.array([len(one) for one in values], np.int64)
            if self.lengths is None or self.shape is not None or not np.array_equal(lengths, self.lengths):
                raise self._misfit(name, f"rows of {_shown(lengths)} values")
            return _copied(_joined(values))
        array = to_host(values)
        if array.ndim == 1 and len(array) == len(self.counts) and self.shape != array.shape:
            return _copied(np.repeat(array, self.counts))
        if array.ndim == 0:
            return _copied(np.repeat(array, int(self.counts.sum())))
        if self.shape is None or array.shape != self.shape:
            raise self._misfit(name, f"shape {array.shape}")
        return _copied(array.reshape(-1) if self.kept is None else array[self.kept])

    def _misfit(self, name: str, found: str) -> InputError:
        expected = f"shape {self.shape}" if self.shape is not None else f"rows of {_shown(self.lengths)} values"
        return InputError(f"{name} has {found}, but logprobs have {expected}; give one value a token, or one a row")


def to_host(values: Any) -> Array:
    """Returns tensors and lists as arrays; floats become float32. Waits for the device where a tensor is on one."""
    if hasattr(values, "detach"):
        tensor = values.detach().cpu()
        return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())
    return np.asarray(values)


def lay_out(
    logprobs: Any, num_rows: int, *, mask: Any = None, lengths: Any = None, cu_seqlens: Any = None
) -> tuple[Layout, Array]:
    """Finds out how logprobs are laid out.

    Args:
        logprobs: a list of B one-dimensional pieces (ragged); [B, T] (padded); or [sum of lengths] (packed).
        num_rows: B.
        mask: bool, of the shape of padded or packed logprobs: which of them are kept.
        lengths: [B]: of padded rows the first so many are kept; of packed ones, where each ends.
        cu_seqlens: [B + 1]: where packed rows begin and end.

    Returns:
        The layout, and the logprobs that are kept, float32 [N], copied.

    Raises:
        InputError: a shape that is none of these, or does not fit the number of rows.
    """
    if _is_ragged(logprobs):
        if mask is not None or lengths is not None or cu_seqlens is not None:
            raise InputError("mask, lengths and cu_seqlens are for logprobs in one tensor; a list has rows of its own")
        counts = np.array([len(one) for one in logprobs], np.int64)
        _check_rows(len(counts), num_rows, "a list of rows")
        layout = Layout(counts, counts, None, None)
        return layout, layout.flatten("logprobs", logprobs)
    array = to_host(logprobs)
    if array.ndim == 2:
        if cu_seqlens is not None:
            raise InputError(f"cu_seqlens are for packed logprobs of one dimension, not for shape {array.shape}")
        layout = _padded(array, num_rows, mask, lengths)
    elif array.ndim == 1:
        layout = _packed(array, num_rows, mask, lengths, cu_seqlens)
    else:
        raise InputError(f"logprobs have shape {array.shape}; expected rows, [rows, tokens], or packed tokens")
    return layout, layout.flatten("logprobs", array)


def _padded(array: Array, num_rows: int, mask: Any, lengths: Any) -> Layout:
    _check_rows(array.shape[0], num_rows, f"logprobs of shape {array.shape}")
    if mask is not None and lengths is not None:
        raise InputError("give either mask or lengths for padded logprobs, not both")
    if mask is not None:
        kept = _as_mask(mask, array.shape)
    elif lengths is not None:
        ends = _as_ints("lengths", lengths, num_rows)
        if ends.size and (ends.max() > array.shape[1] or ends.min() < 0):
            raise InputError(f"lengths go from {ends.min()} to {ends.max()}, but logprobs have shape {array.shape}")
        kept = np.arange(array.shape[1]) < ends[:, None]
    else:
        return Layout(np.full(num_rows, array.shape[1], np.int64), None, array.shape, None)
    return Layout(kept.sum(axis=1).astype(np.int64), None, array.shape, kept)


def _packed(array: Array, num_rows: int, mask: Any, lengths: Any, cu_seqlens: Any) -> Layout:
    if cu_seqlens is not None:
        ends = _as_ints("cu_seqlens", cu_seqlens, num_rows + 1)
        spans = np.diff(ends)
        if ends[0] != 0 or (spans < 0).any():
            raise InputError(f"cu_seqlens must rise from 0, not {_shown(ends)}")
    elif lengths is not None:
        spans = _as_ints("lengths", lengths, num_rows)
    elif num_rows == 1:
        spans = np.array([len(array)], np.int64)
    else:
        raise InputError(f"packed logprobs of {num_rows} requests need cu_seqlens or lengths, to tell where each ends")
    if spans.sum() != len(array):
        raise InputError(f"rows of {int(spans.sum())} tokens in all do not fit packed logprobs of {len(array)}")
    if mask is None:
        return Layout(spans, spans, array.shape, None)
    kept = _as_mask(mask, array.shape)
    before = np.concatenate([[0], np.cumsum(kept)])
    ends = np.concatenate([[0], np.cumsum(spans)])
    return Layout(np.diff(before[ends]).astype(np.int64), spans, array.shape, kept)


def _is_ragged(values: Any) -> bool:
    return isinstance(values, list | tuple) and bool(values) and not np.isscalar(values[0]) and _has_length(values[0])


def _has_length(value: Any) -> bool:
    return hasattr(value, "__len__") and getattr(value, "ndim", 1) == 1


def _joined(values: Sequence[Any]) -> Array:
    first = values[0]
    if hasattr(first, "detach"):
        # One copy from the device for all rows; whoever hands in tensors has torch loaded.
        return to_host(sys.modules["torch"].cat([one.detach() for one in values]))
    return np.concatenate([np.asarray(one) for one in values])


def _copied(array: Array) -> Array:
    return np.array(array, bool if array.dtype == bool else np.float32)


def _as_mask(mask: Any, shape: tuple[int, ...]) -> Array:
    array = to_host(mask).astype(bool)
    if array.shape != shape:
        raise InputError(f"mask has shape {array.shape}, but logprobs have {shape}")
    return array


def _as_ints(name: str, values: Any, size: int) -> Ints:
    array = to_host(values).astype(np.int64).reshape(-1)
    if len(array) != size:
        raise InputError(f"{name} has {len(array)} entries, expected {size} for so many requests")
    return array


def _check_rows(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise InputError(f"{what} has {found} rows, but there are {expected} request ids")


def _shown(numbers: Ints | None) -> str:
    listed = [] if numbers is None else numbers.tolist()
    return str(listed) if len(listed) <= 8 else f"{str(listed[:8])[:-1]}, …]"
