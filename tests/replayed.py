"""Reads what a replay wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tracekit.schema import table, table_names
from tracekit.store import Trace

Row = dict[str, Any]


def scored(path: Path) -> dict[str, list[Row]]:
    """Returns rows of `tokens` by request, in output order."""
    found: dict[str, list[Row]] = {}
    for row in sorted(Trace(path).read("tokens").to_pylist(), key=lambda row: row["output_index"]):
        found.setdefault(row["request_id"], []).append(row)
    return found


def odd_values(path: Path) -> set[tuple[str, str, Any]]:
    """Returns (table, column, value) of values that are none of the well-known ones, where a column has such."""
    found = set()
    for name in table_names():
        known = {column.name: column.values for column in table(name).columns if column.values is not None}
        for column, values in known.items():
            given = set(Trace(path).read(name, [column]).column(column).to_pylist())
            found |= {(name, column, value) for value in given - {None, *values}}
    return found
