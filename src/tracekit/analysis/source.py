"""Puts one trace into a DuckDB connection: its journal rows as tables, views over these and its part files."""

from __future__ import annotations

import os
from pathlib import Path
from string import Template

import duckdb

from tracekit import schema
from tracekit.analysis import library
from tracekit.analysis.failures import read_error
from tracekit.analysis.parts import arranged, listed
from tracekit.analysis.quoting import quoted
from tracekit.analysis.sharing import Share
from tracekit.store import Hold, Trace

_MANIFEST = "CREATE TABLE _manifest (trace_id VARCHAR, parent VARCHAR, role VARCHAR)"

_SQL_TYPES = {
    "bool": "BOOLEAN",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "string": "VARCHAR",
    "json": "VARCHAR",
}


def add_trace(
    connection: duckdb.DuckDBPyConnection, trace: Trace, namespace: str, share: Share | None = None
) -> tuple[list[Path], list[Hold]]:
    """Makes the tables of one trace in an existing schema, which becomes the current one; `complete` adds the rest.

    Args:
        connection: has the macros of the library.
        trace: the trace.
        namespace: the schema.
        share: the part of its requests that is read; all by default.

    Returns:
        The part files that the views read, and what keeps them in place while it is referred to.

    Raises:
        TraceFormatError: a part file cannot be read.
    """
    connection.execute(f"USE {quoted(namespace)}")
    files: list[Path] = []
    holds = []
    for name in schema.table_names():
        snapshot = trace.snapshot(name)
        # As the caller names them, so that errors do too; only made absolute, as allowed_paths wants them.
        chosen = snapshot.parts if share is None else share.of(name, snapshot.parts)
        parts = [Path(os.path.abspath(path)) for path in chosen]
        connection.register("_rows", snapshot.journal_rows)
        connection.execute(f"CREATE TABLE _journal_{name} AS FROM _rows")
        connection.unregister("_rows")
        try:
            arrangement = arranged(connection, parts, in_order=schema.table(name).merge is not None)
            connection.execute(source(schema.table(name), listed(arrangement.files), union=arrangement.union))
        except duckdb.Error as error:
            raise read_error(error, parts) from error
        files += parts
        holds.append(snapshot.hold)
    manifest = trace.manifest
    values = [manifest.trace_id, manifest.parent, manifest.role]
    connection.execute(_MANIFEST)
    connection.execute("INSERT INTO _manifest VALUES ($1, $2, $3)", values)
    library.load(connection, library.TRACE_TABLES, commented=False)
    return files, holds


def add_empty_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Makes what the modules are built on, as of a trace without rows, in the current schema."""
    for name in schema.table_names():
        connection.execute(f"CREATE TABLE _journal_{name} ({columns_of(name)})")
        connection.execute(source(schema.table(name), None))
    connection.execute(_MANIFEST)


def columns_of(table: str) -> str:
    """Returns the columns of a table as CREATE TABLE takes them."""
    return ", ".join(f"{quoted(column.name)} {sql_type(column.type)}" for column in schema.table(table).columns)


def source(table: schema.Table, files: str | None, *, union: bool = True) -> str:
    """Returns the SQL of the view over one table's part files and journal rows.

    Args:
        table: the table's definition; each column is given its type, whatever type a file says.
        files: an SQL expression for the list of its part files; None where there are none.
        union: whether some of the files may lack columns that others have.
    """
    columns = ", ".join(f"{quoted(column.name)}::{sql_type(column.type)} AS {column.name}" for column in table.columns)
    template = Template(library.module("prelude/source_journal" if files is None else "prelude/source"))
    return template.substitute(table=table.name, columns=columns, files=files, union=str(union).lower())


def sql_type(name: str) -> str:
    """Returns the type in SQL of a type of the trace format."""
    if name.startswith("list<"):
        return sql_type(name[5:-1]) + "[]"
    return _SQL_TYPES[name]
