"""The rows that a query gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import pyarrow as pa

from tracekit.analysis.interruption import interruptible

_BATCH_ROWS = 65_536


class Result:
    """Rows of one query, read once as a stream or kept as an Arrow table.

    `batches` streams and may be used once; `arrow` and all that builds on it keep the rows and may be used again.

    Args:
        cursor: the query's own cursor, kept alive with the rows.
        relation: the bound query.
        failure: turns what DuckDB raises while it runs into an error of tracekit.
    """

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        relation: duckdb.DuckDBPyRelation,
        failure: Callable[[duckdb.Error], Exception],
    ) -> None:
        self._failure = failure
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

    def df(self) -> Any:
        """Returns all rows as a pandas data frame (pandas must be installed)."""
        return self.arrow().to_pandas()

    def _next(self) -> pa.RecordBatch | None:
        try:
            return self._reader.read_next_batch()
        except StopIteration:
            return None

    def _guard(self, call: Callable[[], Any]) -> Any:
        try:
            return interruptible(self._cursor, call)
        except duckdb.Error as error:
            raise self._failure(error) from error
        except (pa.ArrowException, OSError) as error:
            # Arrow hands DuckDB's message on as its own error.
            raise self._failure(duckdb.Error(str(error))) from error
