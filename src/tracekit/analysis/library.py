"""The SQL standard library: which files make it up, in which order, and the comments that the trace format gives."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from importlib import resources
from string import Template

import duckdb

from tracekit import schema

# Each stage may use what the stages before it defined, and the tables that the session made of their `_find_` views.
TRACE = ("prelude/tables",)
ARITHMETIC = ("prelude/arithmetic",)
VOCABULARY = ("prelude/vocabulary",)
MATCHING = ("alignment/requests",)
PROOF = ("alignment/proof",)
OBJECTIONS = ("alignment/objections",)
COMPARISON = (
    "alignment/pairs",
    "alignment/divergence",
    "alignment/flips",
    "batches/batches",
    "metrics/requests",
    "metrics/metrics",
)

_SQL_TYPES = {
    "bool": "BOOLEAN",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "string": "VARCHAR",
    "json": "VARCHAR",
}


@functools.cache
def module(name: str) -> str:
    """Returns the text of one .sql file; its path below sql/ is its name."""
    return resources.files(__package__).joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")


def load(connection: duckdb.DuckDBPyConnection, modules: tuple[str, ...]) -> None:
    """Runs modules in the connection's current schema."""
    for name in modules:
        connection.execute(module(name))


def source(table: schema.Table, files: Sequence[str]) -> str:
    """Returns the SQL of the view over one table's part files and journal rows.

    Args:
        table: the table's definition; each column is given its type, whatever type a file says.
        files: the paths of its part files.
    """
    columns = ", ".join(f"{quoted(column.name)}::{_sql_type(column.type)} AS {column.name}" for column in table.columns)
    template = Template(module("prelude/source" if files else "prelude/source_journal"))
    listed = ", ".join(literal(path) for path in files)
    return template.substitute(table=table.name, columns=columns, files=f"[{listed}]")


def trace_comments() -> Iterator[str]:
    """Yields a COMMENT ON for each column of the views over one trace."""
    for name in schema.table_names():
        for view in (name, "tokens_all") if name == "tokens" else (name,):
            for column in schema.table(name).columns:
                yield f"COMMENT ON COLUMN {view}.{column.name} IS {literal(describe(column))};"


def pair_comments() -> Iterator[str]:
    """Yields a COMMENT ON for each a_ and b_ column of `pairs`."""
    for side in ("a", "b"):
        for column in schema.table("tokens").columns:
            text = literal(f"{side.upper()}: {describe(column)}")
            yield f"COMMENT ON COLUMN pairs.{side}_{column.name} IS {text};"


def describe(column: schema.Column) -> str:
    """Returns a column's meaning, unit, shape and known values as one text."""
    text = column.meaning
    if column.unit:
        text += f" Unit: {column.unit}."
    if column.shape:
        text += f" Shape: {column.shape}."
    if column.values:
        text += " Values: " + "; ".join(f"{value} ({meaning})" for value, meaning in column.values.items()) + "."
    return text


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _sql_type(name: str) -> str:
    if name.startswith("list<"):
        return _sql_type(name[5:-1]) + "[]"
    return _SQL_TYPES[name]
