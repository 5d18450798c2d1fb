"""The compared tokens of two traces as arrays, in one order for all columns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import duckdb
import numpy as np
from numpy.typing import NDArray

from tracekit.analysis.explain.kept import Kept

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]
Bins = NDArray[np.uint8]
T = TypeVar("T")

_NUM_BINS = 16
# Of fewer tokens, what causes ask for is kept: they ask again after each finding. Of more, the columns asked for last.
_FEW = 1_000_000
_MOST_COLUMNS = 8
_FEW_ROWS = 0.05
_OUTPUT_INDEX = 0xFFFFFFFF
_MOST_FITTED = 200_000


@dataclass(frozen=True)
class _Rows:
    """A column that is false, or NaN, but for a few rows."""

    num: int
    rows: NDArray[np.int32]
    values: NDArray[Any]

    @classmethod
    def of(cls, column: NDArray[Any]) -> _Rows | None:
        """Returns it; None where the rows are not few."""
        rows = np.flatnonzero(column if column.dtype == np.bool_ else ~np.isnan(column))
        few = len(rows) <= _FEW_ROWS * len(column)
        return cls(len(column), rows.astype(np.int32), column[rows]) if few else None

    def all(self) -> NDArray[Any]:
        """Returns the whole column."""
        nothing = False if self.values.dtype == np.bool_ else np.nan
        column = np.full(self.num, nothing, self.values.dtype)
        column[self.rows] = self.values
        return column


class Tokens:
    """Columns of the view `explained`, sorted by request and output index.

    N compared tokens of R requests; a token whose value either side lacks, or where the tokens differ, is none of them.

    Attributes:
        connection: where `explained` is in memory; SQL that causes run sees the same rows as a session does.
        place: int64 [N], sorted: match and output index in one number.
        num_requests: R.
        request: int32 [N], from 0 to R - 1, rising.
        d: float64 [N], b_value - a_value in nat; may be infinite.
        finite: bool [N], whether it is.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection
        self._kept = Kept(connection)
        self._columns: dict[str, NDArray[Any]] = {}
        self._known: dict[str, bool] = {}
        self._asked: dict[tuple[str, str], NDArray[Any] | _Rows] = {}
        self._facts: dict[Hashable, Any] = {}
        place = self._kept.tokens("place").astype(np.int64)
        self._order = np.argsort(place, kind="stable").astype(np.int32)
        self.place: Integers = place[self._order]
        match = self.place >> 32
        begins = np.flatnonzero(np.diff(match, prepend=-1))
        self.num_requests = len(begins)
        self.request: NDArray[np.int32] = np.repeat(
            np.arange(len(begins), dtype=np.int32), np.diff(begins, append=len(match))
        )
        self._matches = match[begins]
        # Of a match, what its output index is to be added to for a token's row, where none of the request is missing.
        self._origins = np.zeros(int(match[-1]) + 1 if len(match) else 1, np.int64)
        self._origins[self._matches] = begins - (self.place[begins] & _OUTPUT_INDEX)
        self.d = self["d"]
        self.finite = np.isfinite(self.d)

    @property
    def num(self) -> int:
        return len(self.place)

    def __getitem__(self, name: str) -> Floats:
        """Returns a column, float64 [N], NaN where it is null."""
        column = self._columns.pop(name) if name in self._columns else self._read(name)
        self._columns[name] = column
        if self.num > _FEW:
            whole = [
                kept for kept, values in self._columns.items() if len(values) == self.num and values.strides != (0,)
            ]
            for oldest in whole[:-_MOST_COLUMNS]:
                del self._columns[oldest]
        return (column[self.request] if len(column) < self.num else column).astype(np.float64, copy=False)

    def known(self, *names: str) -> bool:
        """Whether these columns have a value for some token."""
        for name in names:
            if name not in self._known:
                self._known[name] = not np.all(np.isnan(self[name]))
        return all(self._known[name] for name in names)

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

    def values_at(self, rows: Integers, query: str, name: str = "value") -> Floats:
        """Returns what `values` does of some rows, rising ones: float64 [M]."""
        self.connection.register("_asked", {"place": self.place[rows]})
        found = self._values(f"FROM ({query}) AS q SEMI JOIN _asked ON q.place = _asked.place", name)
        self.connection.unregister("_asked")
        return found[rows]

    def once(self, key: Hashable, ask: Callable[[], T]) -> T:
        """Returns what is asked, once for each key: what depends on the tokens alone."""
        if key not in self._facts:
            self._facts[key] = ask()
        found: T = self._facts[key]
        return found

    def _once(self, key: tuple[str, str], ask: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        kept = self._asked.get(key)
        if kept is not None:
            return kept.all() if isinstance(kept, _Rows) else kept
        found = ask()
        found.flags.writeable = False
        if self.num <= _FEW:
            self._asked[key] = found
        elif (rows := _Rows.of(found)) is not None:
            self._asked[key] = rows
        return found

    def _values(self, query: str, name: str) -> Floats:
        found = self.connection.sql(f"SELECT place, {name}::DOUBLE AS value FROM ({query}) AS q").fetchnumpy()
        values = np.full(self.num, np.nan)
        rows, compared = self._find(found["place"])
        values[rows] = np.ma.filled(found["value"], np.nan)[compared]
        return values

    def _find(self, places: NDArray[Any]) -> tuple[Integers, Bools]:
        """Returns the rows of those places that are compared, and which these are."""
        if not self.num:
            return np.zeros(0, np.int64), np.zeros(len(places), bool)
        origins = self._origins[np.minimum(places >> 32, len(self._origins) - 1)]
        rows = np.clip(origins + (places & _OUTPUT_INDEX), 0, self.num - 1)
        compared = self.place[rows] == places
        if not np.all(compared):
            others = np.flatnonzero(~compared)
            rows[others] = np.minimum(np.searchsorted(self.place, places[others]), self.num - 1)
            compared[others] = self.place[rows[others]] == places[others]
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

    @functools.cached_property
    def probability_bins(self) -> Bins:
        """A bin a token, uint8 [N]: tokens of like logprob in A, whose differences are of like size."""
        of = self["a_raw"] if self.known("a_raw") else self["a_value"]
        of = np.nan_to_num(of, nan=0.0, neginf=-1e4)
        edges = np.quantile(of, np.linspace(0, 1, _NUM_BINS + 1)[1:-1])
        return np.searchsorted(np.unique(edges), of).astype(np.uint8)

    def _read(self, name: str) -> NDArray[Any]:
        """Returns a column: of tokens [N], of requests [R], or one number [N] in the place of millions."""
        if self._kept.is_of_requests(name):
            column = self._kept.requests(name, self._matches)
        else:
            column = self._kept.tokens(name)
            if len(column) and _is_one(column):
                return np.broadcast_to(np.float64(column[0]), column.shape)
            column = column[self._order]
        if len(column) and _is_one(column):
            return np.broadcast_to(np.float64(column[0]), self.place.shape)
        return column


def rows_to_fit(known: Bools) -> Integers:
    """Returns the rows that are true, int64; where they are many as many as fix a number, drawn at random."""
    rows = np.flatnonzero(known)
    if len(rows) > _MOST_FITTED:
        rows = np.sort(np.random.default_rng(0).choice(rows, _MOST_FITTED, replace=False))
    return rows


def _is_one(column: NDArray[Any]) -> bool:
    """Whether a column holds one number only, or only NaN."""
    if np.isnan(column[0]):
        return bool(np.all(np.isnan(column)))
    return bool(column[0] == column[-1] and np.all(column == column[0]))


def rows(connection: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Returns the rows of a small query."""
    found: list[dict[str, Any]] = connection.sql(query, params=list(parameters)).to_arrow_table().to_pylist()
    return found
