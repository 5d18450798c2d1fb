"""The compared tokens in memory: tables in the place of a session's views, and their columns in one order."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

_VIEW = re.compile(r"CREATE (?:TEMP )?VIEW (?:\w+\.)?explained\b")
_D = "b_value::DOUBLE - a_value::DOUBLE"


class Kept:
    """The rows of `explained` in memory, under the names that it has in the session.

    Only a scan of one table returns rows in one order: two queries over a join may not. So columns are read from the
    table of tokens and from that of requests, never from `explained`.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        connection.execute(resources.files(__package__).joinpath("sql", "keep.sql").read_text(encoding="utf-8"))
        self._of_requests = {name for name, _ in _columns(connection, "_explained_requests")}
        _leave_constants_out(connection)
        # The same view, over what is in memory now.
        ((view,),) = connection.execute("SELECT sql FROM duckdb_views() WHERE view_name = 'explained'").fetchall()
        connection.execute(_VIEW.sub("CREATE TEMP VIEW explained", view, count=1))

    def is_of_requests(self, name: str) -> bool:
        """Whether a column of `explained` is one of requests."""
        return name in self._of_requests and name != "match_id"

    def tokens(self, name: str) -> NDArray[Any]:
        """Returns a column of the compared tokens, [N], in the order of the table; NaN where it is null."""
        value = _D if name == "d" else name
        return self._read(f"SELECT {value} AS value FROM _valued_tokens WHERE {_D} IS NOT NULL")["value"]

    def requests(self, name: str, matches: NDArray[np.int64]) -> NDArray[Any]:
        """Returns a column of the requests of these matches, [R]; NaN where it is null."""
        found = self._read(f"SELECT match_id, {name} AS value FROM _explained_requests ORDER BY match_id")
        values: NDArray[Any] = found["value"][np.searchsorted(found["match_id"], matches)]
        return values

    def _read(self, query: str) -> dict[str, NDArray[Any]]:
        found = self._connection.sql(query).fetchnumpy()
        return {name: _plain(column) for name, column in found.items()}


def _plain(column: NDArray[Any]) -> NDArray[Any]:
    if not isinstance(column, np.ma.MaskedArray):
        return column
    if not np.any(column.mask):
        return np.asarray(column.data)
    values = np.array(column.data, column.dtype if column.dtype.kind == "f" else np.float64)
    values[column.mask] = np.nan
    return values


def _leave_constants_out(connection: duckdb.DuckDBPyConnection) -> None:
    """Makes `_valued_tokens` what it is in the session, over a table less columns that are one number throughout."""
    columns = _columns(connection, "_kept_tokens")
    extremes = ", ".join(f"min({name})::VARCHAR, max({name})::VARCHAR, count({name})" for name, _ in columns)
    num, *told = connection.execute(f"SELECT count(*), {extremes} FROM _kept_tokens").fetchall()[0]
    shown = []
    for (name, kind), least, greatest, count in zip(columns, told[::3], told[1::3], told[2::3], strict=True):
        # A table needs one column.
        if name != "place" and least == greatest and count in (0, num):
            connection.execute(f"ALTER TABLE _kept_tokens DROP COLUMN {name}")
            shown.append(f"{'NULL' if least is None else repr(least)}::{kind} AS {name}")
        else:
            shown.append(name)
    connection.execute(f"CREATE TEMP VIEW _valued_tokens AS SELECT {', '.join(shown)} FROM _kept_tokens")


def _columns(connection: duckdb.DuckDBPyConnection, table: str) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in connection.execute(f"DESCRIBE FROM {table}").fetchall()]
