"""Puts one trace into a DuckDB connection: its journal rows as tables, views over these and its part files."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb

from tracekit import schema
from tracekit.analysis import library
from tracekit.analysis.failures import read_error
from tracekit.store import Trace


def add_trace(connection: duckdb.DuckDBPyConnection, trace: Trace, namespace: str) -> list[Path]:
    """Makes the views of one trace in an existing schema, which becomes the current one.

    Returns:
        The part files that the views read.

    Raises:
        TraceFormatError: a part file cannot be read.
    """
    connection.execute(f"USE {library.quoted(namespace)}")
    files: list[Path] = []
    for name in schema.table_names():
        snapshot = trace.snapshot(name)
        # As the caller names them, so that errors do too; only made absolute, as allowed_paths wants them.
        parts = [Path(os.path.abspath(path)) for path in snapshot.parts]
        connection.register("_rows", snapshot.journal_rows)
        connection.execute(f"CREATE TABLE _journal_{name} AS FROM _rows")
        connection.unregister("_rows")
        try:
            connection.execute(library.source(schema.table(name), [str(path) for path in parts]))
        except duckdb.Error as error:
            raise read_error(error, parts) from error
        files += parts
    library.load(connection, library.TRACE)
    connection.execute("\n".join(library.trace_comments()))
    return files
