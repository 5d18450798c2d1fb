"""Gives rows of other releases and other tools the columns that are wanted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from tracekit.errors import TraceFormatError
from tracekit.schema import FORMAT_VERSION, MAJOR, VERSION_KEY, arrow_schema


def conform(rows: pa.Table, schema: pa.Schema, path: Path) -> pa.Table:
    """Returns rows in the columns of a schema: others are left out, missing ones become null.

    Args:
        rows: what a file holds.
        schema: the columns wanted.
        path: the file, for errors.

    Raises:
        TraceFormatError: a column is of another type, or a required one is missing.
    """
    arrays = []
    for field in schema:
        if field.name in rows.column_names:
            try:
                arrays.append(rows.column(field.name).cast(field.type))
            except pa.ArrowException as error:
                found = rows.schema.field(field.name).type
                raise TraceFormatError(
                    f"{path}: column '{field.name}' is {found}, the format says {field.type}; move the file away"
                ) from error
        elif field.nullable:
            arrays.append(pa.nulls(rows.num_rows, field.type))
        else:
            raise TraceFormatError(f"{path}: column '{field.name}' is missing; move the file away to read the rest")
    return pa.table(arrays, schema=schema)


def check_version(schema: pa.Schema, path: Path) -> None:
    """Refuses a part of a major version that this release does not know."""
    version = version_of(schema)
    if version.partition(".")[0] != str(MAJOR):
        raise TraceFormatError(f"{path} has trace format {version}, this tracekit reads {MAJOR}.x; move it away")


def version_of(schema: pa.Schema) -> str:
    """Returns the format version that a part says it has."""
    version: bytes = (schema.metadata or {}).get(VERSION_KEY, FORMAT_VERSION.encode())
    return version.decode()


def unreadable(path: Path, error: Exception) -> TraceFormatError:
    """Returns the error for a part that is damaged."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return TraceFormatError(
        f"{path} cannot be read as a Parquet part ({reason}); restore it, or move it away to read the rest"
    )


def united_schema(table: str, found: Iterable[pa.Schema]) -> pa.Schema:
    """Returns a schema that holds all columns of some parts, those of newer minor versions included."""
    schema = arrow_schema(table)
    fields = {field.name: field for field in schema}
    version = FORMAT_VERSION
    for other in found:
        version = max(version, version_of(other), key=_minor)
        fields |= {field.name: field.with_nullable(True) for field in other if field.name not in fields}
    return pa.schema(list(fields.values()), metadata={**schema.metadata, VERSION_KEY: version.encode()})


def _minor(version: str) -> int:
    minor = version.partition(".")[2]
    return int(minor) if minor.isdecimal() else 0
