"""Puts one trace into a DuckDB connection: its journal rows as tables, views over these and its part files."""

from __future__ import annotations

from pathlib import Path

import duckdb

from tracekit import schema
from tracekit.analysis import library
from tracekit.errors import TraceFormatError
from tracekit.store import Trace


def add_trace(connection: duckdb.DuckDBPyConnection, trace: Trace, namespace: str) -> list[Path]:
    """Makes the views of one trace in an existing schema, which becomes the current one.

    Returns:
        The part files that the views read.

    Raises:
        TraceFormatError: the trace has no readable parts.
    """
    connection.execute(f"USE {library.quoted(namespace)}")
    files: list[Path] = []
    for name in schema.table_names():
        snapshot = trace.snapshot(name)
        parts = [path.resolve() for path in snapshot.parts]
        if not parts:
            raise TraceFormatError(f"{trace.path} has no part of table '{name}'; restore {trace.path / name}")
        connection.register("_rows", snapshot.journal_rows)
        connection.execute(f"CREATE TABLE _journal_{name} AS FROM _rows")
        connection.unregister("_rows")
        connection.execute(library.source(schema.table(name), [str(path) for path in parts]))
        files += parts
    library.load(connection, library.TRACE)
    connection.execute("\n".join(library.trace_comments()))
    return files
