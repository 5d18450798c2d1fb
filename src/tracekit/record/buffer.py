"""Rows that wait for the next flush, so that one batch a second reaches the store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from tracekit.record.capture import Columns
from tracekit.record.unknown import UNKNOWN

# Figures that may be unknown for a row; NaN, or a negative number, stands for null in them.
_NULL_AS_NAN = ("kept_mass",)
_NULL_AS_UNKNOWN = ("processed_logprob", "reported_logprob")
_NULL_AS_NEGATIVE = (
    *("kept_count", "output_index", "draft_index", "weight_version", "kv_weight_version_min"),
    "coupled_token_id",
)


class RowBuffer:
    """Single rows of any table."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Columns]] = {}

    def add(self, table: str, row: Columns) -> None:
        self._rows.setdefault(table, []).append(row)

    def drain(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (table, columns) and forgets the rows."""
        rows, self._rows = self._rows, {}
        for table, of_table in rows.items():
            names = {name: None for row in of_table for name in row}
            yield table, {name: [row.get(name) for row in of_table] for name in names}


class BatchBuffer:
    """Columns of whole captures: arrays, or lists of one entry a row."""

    def __init__(self) -> None:
        self._batches: dict[str, list[dict[str, Any]]] = {}

    def add(self, table: str, columns: dict[str, Any]) -> None:
        """Keeps a batch; each has a list `request_id`, and may lack columns that others of its table have."""
        self._batches.setdefault(table, []).append(columns)

    def drain(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (table, columns) and forgets the batches."""
        batches, self._batches = self._batches, {}
        for table, of_table in batches.items():
            names = {name: None for columns in of_table for name in columns}
            joined = {name: _joined(name, of_table) for name in names}
            yield table, joined


def _joined(name: str, batches: list[dict[str, Any]]) -> Any:
    pieces = [columns[name] if name in columns else _missing(name, len(columns["request_id"])) for columns in batches]
    if any(isinstance(piece, list) for piece in pieces):
        return [value for piece in pieces for value in piece]
    values = np.concatenate(pieces)
    if name in _NULL_AS_NAN:
        return pa.array(values, mask=np.isnan(values))
    if name in _NULL_AS_UNKNOWN:
        return pa.array(values, mask=values == np.float32(UNKNOWN))
    return pa.array(values, mask=values < 0) if name in _NULL_AS_NEGATIVE else values


def _missing(name: str, count: int) -> Any:
    if name in _NULL_AS_NAN:
        return np.full(count, np.nan, np.float32)
    if name in _NULL_AS_UNKNOWN:
        return np.full(count, UNKNOWN, np.float32)
    return np.full(count, -1, np.int32) if name in _NULL_AS_NEGATIVE else [None] * count
