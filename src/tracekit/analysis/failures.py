"""Turns DuckDB's errors into tracekit's, in one line."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

import duckdb

from tracekit.errors import QueryError, TraceFormatError, TracekitError, nearest

_MISSING_TABLE = re.compile(r"Table with name (\S+) does not exist")
_PLACE = re.compile(r"\n\s*LINE (\d+):.*", re.DOTALL)
# DuckDB's advice to change settings, which are locked.
_ADVICE = re.compile(r"\n\s*Possible solutions:.*", re.DOTALL)


def query_error(error: duckdb.Error, known: Collection[str] = ()) -> QueryError:
    """Returns DuckDB's message in one line, with its place where the query has several lines.

    Args:
        error: what DuckDB raised.
        known: names of views, to hint at where a table is missing.
    """
    message = str(error)
    place = _PLACE.search(message)
    text = _ADVICE.sub("", _PLACE.sub("", message))
    missing = _MISSING_TABLE.search(text)
    if missing and known:
        text = text[: missing.end()] + _hint(missing[1].strip('"!'), known)
    text = " ".join(text.split())
    return QueryError(f"{text} (line {place[1]})" if place and place[1] != "1" else text)


def read_error(error: duckdb.Error, files: Iterable[Path], known: Collection[str] = ()) -> TracekitError:
    """Returns the error for a statement that failed while it ran: the fault of a file, where one cannot be read."""
    if _may_be_a_file(error, files):
        for path in files:
            reason = _damage(path)
            if reason:
                return TraceFormatError(
                    f"{path} cannot be read as a Parquet part ({reason}); restore it, or move it away to read the rest"
                )
    return query_error(error, known)


def _hint(name: str, known: Collection[str]) -> str:
    return f" (did you mean 'a.{name}'?)" if f"a.{name}" in known else nearest(name, known)


def _may_be_a_file(error: duckdb.Error, files: Iterable[Path]) -> bool:
    # Damage inside a file mostly comes as the plain base class; damage of its ends as invalid input that names it.
    if type(error) is duckdb.Error or isinstance(error, duckdb.IOException | duckdb.InternalException):
        return True
    return isinstance(error, duckdb.InvalidInputException) and any(str(path) in str(error) for path in files)


def _damage(path: Path) -> str | None:
    try:
        with duckdb.connect() as connection:
            for _ in connection.read_parquet(str(path), hive_partitioning=False).to_arrow_reader():
                pass
    except (duckdb.Error, OSError, ValueError) as error:
        text = " ".join(_PLACE.sub("", str(error)).split())
        return "".join(character if character.isprintable() else "?" for character in text)
    return None
