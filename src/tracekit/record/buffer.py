"""Rows that wait for the next flush, so that one batch a second reaches the store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from tracekit.record.capture import Columns

# Figures that may be unknown for a row; NaN, or a negative count, stands for null in them.
_NULL_AS_NAN = ("processed_logprob", "kept_mass", "reported_logprob")
_NULL_AS_NEGATIVE = ("kept_count",)


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


class TokenBuffer:
    """Columns of whole steps of the table `tokens`."""

    def __init__(self) -> None:
        self._steps: list[dict[str, Any]] = []

    def add(self, columns: dict[str, Any] | None) -> None:
        if columns is not None:
            self._steps.append(columns)

    def drain(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields ('tokens', columns) where there are any, and forgets them."""
        steps, self._steps = self._steps, []
        if not steps:
            return
        names = {name: None for columns in steps for name in columns}
        yield "tokens", {name: _joined(name, steps) for name in names} | {"forced": False, "is_prompt": False}


def _joined(name: str, steps: list[dict[str, Any]]) -> Any:
    if name in _NULL_AS_NAN:
        values = np.concatenate([columns.get(name, _missing(columns)) for columns in steps])
        return pa.array(values, mask=np.isnan(values))
    pieces = [columns[name] for columns in steps]
    if name in _NULL_AS_NEGATIVE:
        values = np.concatenate(pieces)
        return pa.array(values, mask=values < 0)
    return [value for piece in pieces for value in piece] if isinstance(pieces[0], list) else np.concatenate(pieces)


def _missing(columns: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.full(len(columns["request_id"]), np.nan, np.float32)
