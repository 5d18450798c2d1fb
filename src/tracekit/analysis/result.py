"""The rows that a query gave."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import pyarrow as pa

from tracekit.analysis.interruption import interruptible
from tracekit.errors import BackendUnavailableError

_BATCH_ROWS = 65_536


class Result:
    """Rows of one query, read once as a stream or kept as an Arrow table.

    `batches` streams and may be used once; `arrow` and all that builds on it keep the rows and may be used again.

    Args:
        cursor: the query's own cursor, kept alive with the rows.
        relation: the bound query.
        failure: turns what DuckDB raises while it runs into an error of tracekit.
        watch: is told how much is done in per cent.
    """

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        relation: duckdb.DuckDBPyRelation,
        failure: Callable[[duckdb.Error], Exception],
        watch: Callable[[float], None] | None = None,
    ) -> None:
        self._failure = failure
        self._watch = watch
        self._cursor = cursor
        self._reader: pa.RecordBatchReader = self._guard(lambda: relation.to_arrow_reader(_BATCH_ROWS))
        self._table: pa.Table | None = None

    @property
    def schema(self) -> pa.Schema:
        return self._reader.schema

    @property
    def columns(self) -> list[str]:
        """Column names, in order."""
        return list(self.schema.names)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the rows without holding all of them."""
        if self._table is not None:
            yield from self._table.to_batches()
            return
        while (batch := self._guard(self._next)) is not None:
            yield batch

    def arrow(self) -> pa.Table:
        """Returns all rows as an Arrow table."""
        if self._table is None:
            self._table = pa.Table.from_batches(list(self.batches()), self.schema)
        return self._table

    def rows(self) -> list[tuple[Any, ...]]:
        """Returns all rows as tuples of Python values."""
        columns = [column.to_pylist() for column in self.arrow().columns]
        return list(zip(*columns, strict=True))

    def dicts(self) -> list[dict[str, Any]]:
        """Returns all rows as dictionaries from column name to Python value."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows()]

    def df(self, *, arrow_types: bool = False) -> Any:
        """Returns all rows as a pandas data frame.

        Args:
            arrow_types: keep Arrow's types and memory (pandas.ArrowDtype): nothing is copied, integers with nulls stay
                integers. Otherwise columns are NumPy's, which is a copy.

        Raises:
            BackendUnavailableError: pandas is not installed.
        """
        pandas = _package("pandas")
        return self.arrow().to_pandas(types_mapper=pandas.ArrowDtype if arrow_types else None)

    def pl(self) -> Any:
        """Returns all rows as a Polars data frame over the same memory: flat columns are not copied.

        Raises:
            BackendUnavailableError: Polars is not installed.
        """
        return _package("polars").from_arrow(self.arrow(), rechunk=False)

    def _next(self) -> pa.RecordBatch | None:
        try:
            return self._reader.read_next_batch()
        except StopIteration:
            return None

    def _guard(self, call: Callable[[], Any]) -> Any:
        try:
            return interruptible(self._cursor, call, self._watch)
        except duckdb.Error as error:
            raise self._failure(error) from error
        except (pa.ArrowException, OSError) as error:
            # Arrow hands DuckDB's message on as its own error.
            raise self._failure(duckdb.Error(str(error))) from error


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendUnavailableError(
            f"data frames of {name} need the package '{name}', which is not installed: pip install {name}; "
            "arrow() and rows() need nothing"
        ) from error
