"""Turns DuckDB's errors into tracekit's, in one line."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tracekit.errors import QueryError, TraceFormatError, TracekitError, nearest

_MISSING_TABLE = re.compile(r"Table with name (\S+) does not exist")
_PLACE = re.compile(r"\n\s*LINE (\d+):.*", re.DOTALL)

# What DuckDB raises when the statement is at fault, and not what it reads.
_STATEMENT_ERRORS = (
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.SyntaxException,
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
    duckdb.PermissionException,
    duckdb.NotImplementedException,
    duckdb.OutOfMemoryException,
    duckdb.InterruptException,
)


def query_error(error: duckdb.Error, known: Collection[str] = ()) -> QueryError:
    """Returns DuckDB's message in one line, with its place where the query has several lines.

    Args:
        error: what DuckDB raised.
        known: names of views, to hint at where a table is missing.
    """
    message = str(error)
    place = _PLACE.search(message)
    text = _PLACE.sub("", message)
    missing = _MISSING_TABLE.search(text)
    if missing and known:
        name = missing[1].strip('"!')
        text = text[: missing.end()] + (
            " (did you mean 'a." + name + "'?)" if f"a.{name}" in known else nearest(name, known)
        )
    text = " ".join(text.split())
    return QueryError(f"{text} (line {place[1]})" if place and place[1] != "1" else text)


def read_error(error: duckdb.Error, files: Iterable[Path], known: Collection[str] = ()) -> TracekitError:
    """Returns the error for a statement that failed while it ran: the fault of a file, where one cannot be read."""
    if not isinstance(error, _STATEMENT_ERRORS):
        for path in files:
            reason = _damage(path)
            if reason:
                return TraceFormatError(
                    f"{path} cannot be read as a Parquet part ({reason}); restore it, or move it away to read the rest"
                )
    return query_error(error, known)


def _damage(path: Path) -> str | None:
    try:
        with pq.ParquetFile(path) as file:
            for _ in file.iter_batches():
                pass
    except (pa.ArrowException, OSError) as error:
        return str(error).splitlines()[0]
    return None
