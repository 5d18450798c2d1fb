"""In which order part files are named to DuckDB, and whether it has to look into each of them.

With union_by_name it does so whenever a view is named in a query: of a thousand parts that takes a tenth of a second,
and a comparison names views hundreds of times. Without, it takes all files to have the columns of the first, and its
number of rows too, from which it plans joins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from tracekit.analysis.quoting import literal

# How far the number of rows that DuckDB assumes may be off before it had better look into every file.
_MOST_OFF = 2.0


@dataclass(frozen=True)
class Parts:
    """Part files as DuckDB is to be told of them.

    Attributes:
        files: the paths.
        union: whether it has to look into each of them.
    """

    files: tuple[Path, ...]
    union: bool


def arranged(connection: duckdb.DuckDBPyConnection, files: Sequence[Path], *, in_order: bool) -> Parts:
    """Looks into part files once; what is read of them is kept for the queries to come.

    Args:
        connection: has the module prelude/parts.
        files: the part files, in the order of writing.
        in_order: whether that order matters; files without rows may come last all the same.

    Raises:
        duckdb.Error: a file cannot be read.
    """
    if len(files) < 2:
        return Parts(tuple(files), union=False)
    rows = connection.execute(f"SELECT file_name, columns, num_rows FROM main._looked_into({listed(files)})").fetchall()
    num_rows = {name: number for name, _, number in rows}
    if len({columns for _, columns, _ in rows}) > 1:
        return Parts(tuple(files), union=True)
    total = sum(num_rows.values())
    order = sorted(files, key=lambda path: not num_rows[str(path)])
    if not in_order:
        typical = min(files, key=lambda path: abs(num_rows[str(path)] * len(files) - total))
        order.sort(key=lambda path: path != typical)
    assumed = num_rows[str(order[0])] * len(files)
    if not total / _MOST_OFF <= assumed <= total * _MOST_OFF:
        return Parts(tuple(files), union=True)
    return Parts(tuple(order), union=False)


def listed(files: Sequence[Path]) -> str | None:
    """Returns the SQL of a list of paths; None for none."""
    return "[" + ", ".join(literal(str(path)) for path in files) + "]" if files else None
