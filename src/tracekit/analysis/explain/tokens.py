"""The compared tokens of two traces as arrays, in one order for all columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

_NUM_BINS = 16
# Of fewer tokens, what causes ask for is kept: they ask again after each finding.
_FEW = 1_000_000
_VIEW = re.compile(r"CREATE (?:TEMP )?VIEW (?:\w+\.)?explained\b")


class Tokens:
    """Columns of the view `explained`, read once each, sorted by request and output index.

    N compared tokens of R requests; a token whose value either side lacks, or where the tokens differ, is none of them.

    Attributes:
        connection: where `explained` is a table; SQL that causes run sees the same rows as a session does.
        place: int64 [N], sorted: match and output index in one number.
        num_requests: R.
        request: int64 [N], from 0 to R - 1, rising.
        d: float64 [N], b_value - a_value in nat; may be infinite.
        finite: bool [N], whether it is.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection
        for name in ("_explained_requests", "_explained_tokens"):
            connection.execute(f"CREATE TEMP TABLE {name} AS FROM main.{name}")
        # The same view, over what is in memory now.
        ((view,),) = connection.execute("SELECT sql FROM duckdb_views() WHERE view_name = 'explained'").fetchall()
        connection.execute(_VIEW.sub("CREATE TEMP VIEW explained", view, count=1))
        self._columns: dict[str, NDArray[Any]] = {}
        self._asked: dict[tuple[str, str], NDArray[Any]] = {}
        self._order: Integers = np.arange(0)
        place = self._read("place").astype(np.int64)
        self._order = np.argsort(place, kind="stable")
        self.place: Integers = place[self._order]
        match = self.place >> 32
        begins = np.concatenate([[True], match[1:] != match[:-1]])[: len(match)]
        self.num_requests = int(begins.sum())
        self.request: Integers = np.cumsum(begins) - 1
        self.d = self["d"]
        self.finite = np.isfinite(self.d)

    @property
    def num(self) -> int:
        return len(self.place)

    def __getitem__(self, name: str) -> Floats:
        """Returns a column, float64 [N], NaN where it is null."""
        if name not in self._columns:
            self._columns[name] = self._read(name)
        return self._columns[name].astype(np.float64, copy=False)

    def known(self, *names: str) -> bool:
        """Whether these columns have a value for some token."""
        return all(bool(np.any(~np.isnan(self[name]))) for name in names)

    def mask(self, query: str) -> Bools:
        """Returns which tokens a query names by its column `place`, bool [N]."""
        return self._once((query, ""), lambda: self._mask(query))

    def _mask(self, query: str) -> Bools:
        mask = np.zeros(self.num, bool)
        mask[self._find(self.connection.sql(f"SELECT place FROM ({query}) AS q").fetchnumpy()["place"])[0]] = True
        return mask

    def values(self, query: str, name: str = "value") -> Floats:
        """Returns a column of a query that has `place` too, float64 [N]; NaN for tokens that it lacks."""
        return self._once((query, name), lambda: self._values(query, name))

    def _once(self, key: tuple[str, str], ask: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        if key in self._asked:
            return self._asked[key]
        found = ask()
        found.flags.writeable = False
        if self.num <= _FEW:
            self._asked[key] = found
        return found

    def _values(self, query: str, name: str) -> Floats:
        found = self.connection.sql(f"SELECT place, {name}::DOUBLE AS value FROM ({query}) AS q").fetchnumpy()
        values = np.full(self.num, np.nan)
        rows, compared = self._find(found["place"])
        values[rows] = np.ma.filled(found["value"], np.nan)[compared]
        return values

    def _find(self, places: NDArray[Any]) -> tuple[Integers, Bools]:
        """Returns the rows of those places that are compared, and which these are."""
        rows = np.minimum(np.searchsorted(self.place, places), max(self.num - 1, 0))
        compared = self.place[rows] == places if self.num else np.zeros(len(places), bool)
        return rows[compared], compared

    def per_request(self, values: Floats, mask: Bools | None = None) -> tuple[Floats, Floats]:
        """Returns sums and counts of values by request, float64 [R] each; of the tokens of a mask."""
        request = self.request if mask is None else self.request[mask]
        chosen = values if mask is None else values[mask]
        sums = np.bincount(request, chosen, self.num_requests).astype(np.float64)
        return sums, np.bincount(request, minlength=self.num_requests).astype(np.float64)

    def means(self, values: Floats, mask: Bools | None = None) -> Floats:
        """Returns means by request, float64 [R]; NaN for a request without a token."""
        sums, counts = self.per_request(values, mask)
        found: Floats = np.divide(sums, counts, out=np.full(self.num_requests, np.nan), where=counts > 0)
        return found

    def probability_bins(self) -> Integers:
        """Returns a bin a token, int64 [N]: tokens of like logprob in A, whose differences are of like size."""
        if "bins" not in self._columns:
            of = self["a_raw"] if self.known("a_raw") else self["a_value"]
            of = np.nan_to_num(of, nan=0.0, neginf=-1e4)
            edges = np.quantile(of, np.linspace(0, 1, _NUM_BINS + 1)[1:-1])
            self._columns["bins"] = np.searchsorted(np.unique(edges), of)
        return self._columns["bins"].astype(np.int64, copy=False)

    def _read(self, name: str) -> NDArray[Any]:
        column = self.connection.sql(f"SELECT {name} FROM explained WHERE d IS NOT NULL").fetchnumpy()[name]
        if isinstance(column, np.ma.MaskedArray):
            if np.all(column.mask):
                return np.broadcast_to(np.nan, column.shape)
            dtype = column.dtype if column.dtype.kind == "f" else np.float64
            column = np.where(column.mask, np.nan, np.asarray(column.data, dtype)).astype(dtype)
        column = np.asarray(column)
        if len(column) and np.all(column == column[0]):
            # One number in place of millions, which many columns are.
            return np.broadcast_to(np.float64(column[0]), column.shape)
        return column[self._order] if len(self._order) else column


def rows(connection: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Returns the rows of a small query."""
    found: list[dict[str, Any]] = connection.sql(query, params=list(parameters)).to_arrow_table().to_pylist()
    return found
