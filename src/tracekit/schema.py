"""Builds pyarrow schemas from the column definitions in schemas/, the trace format's one source of truth."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tracekit.errors import TraceFormatError, nearest

__all__ = ["FORMAT_VERSION", "Column", "Table", "arrow_schema", "record_batch", "table", "table_names"]

MAJOR = 1
VERSION_KEY = b"tracekit.format_version"
TABLE_KEY = b"tracekit.table"

_ARROW_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "json": pa.string(),
    "list<int32>": pa.list_(pa.int32()),
    "list<float32>": pa.list_(pa.float32()),
    "list<string>": pa.list_(pa.string()),
    "list<list<int32>>": pa.list_(pa.list_(pa.int32())),
}


@dataclass(frozen=True)
class Column:
    """One column as its definition file states it."""

    name: str
    type: str
    nullable: bool
    meaning: str
    since: str
    unit: str | None = None
    shape: str | None = None
    values: Mapping[str, str] | None = None

    @property
    def arrow_type(self) -> pa.DataType:
        return _ARROW_TYPES[self.type]

    @property
    def is_float(self) -> bool:
        return "float" in self.type

    def arrow_field(self) -> pa.Field:
        docs = {"meaning": self.meaning, "since": self.since}
        docs |= {key: text for key, text in (("unit", self.unit), ("shape", self.shape)) if text}
        return pa.field(self.name, self.arrow_type, self.nullable, metadata=docs)


@dataclass(frozen=True)
class Table:
    """One table of the format.

    Attributes:
        row: what one row is.
        key: columns that identify a row; several rows may share it only where `merge` is set.
        merge: 'first_non_null' where each process writes its own part of a row.
    """

    name: str
    row: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    merge: str | None = None

    def column(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        known = nearest(name, (column.name for column in self.columns))
        raise TraceFormatError(f"table '{self.name}' has no column '{name}'{known}")


def definitions_dir() -> Path:
    """Returns the folder of the definition files: inside the wheel, or at the root of a source checkout."""
    package = Path(__file__).parent
    for folder in (package / "schemas", package.parent.parent / "schemas"):
        if (folder / f"v{MAJOR}").is_dir():
            return folder
    raise TraceFormatError(f"the schema files are missing beside {package}: install tracekit again")


def _load(name: str) -> Any:
    return json.loads((definitions_dir() / f"v{MAJOR}" / f"{name}.json").read_text(encoding="utf-8"))


@functools.cache
def _format() -> tuple[str, tuple[str, ...]]:
    definition = _load("format")
    return definition["version"], tuple(definition["tables"])


FORMAT_VERSION: str = _format()[0]


def table_names() -> tuple[str, ...]:
    """Returns the tables of this format version, in the order of the specification."""
    return _format()[1]


@functools.cache
def table(name: str) -> Table:
    """Returns the definition of one table.

    Raises:
        TraceFormatError: there is no such table.
    """
    if name not in table_names():
        raise TraceFormatError(f"the trace format has no table '{name}'{nearest(name, table_names())}")
    definition = _load(name)
    columns = tuple(Column(**column) for column in definition["columns"])
    return Table(definition["table"], definition["row"], tuple(definition["key"]), columns, definition.get("merge"))


@functools.cache
def arrow_schema(name: str) -> pa.Schema:
    """Returns the pyarrow schema of one table, with field docs and the format version in its metadata."""
    fields = [column.arrow_field() for column in table(name).columns]
    return pa.schema(fields, metadata={VERSION_KEY: FORMAT_VERSION, TABLE_KEY: name})


def record_batch(name: str, columns: Mapping[str, Any]) -> pa.RecordBatch:
    """Builds a batch of one table's rows; nullable columns that are not given become null.

    Args:
        name: the table.
        columns: values by column: a sequence or array of N entries (2-D [N, K] for list columns), or one
            scalar that stands for all rows. At least one column must be a sequence.

    Raises:
        TraceFormatError: unknown column, missing required column, values of another type, or lengths that differ.
    """
    definition = table(name)
    unknown = columns.keys() - {column.name for column in definition.columns}
    for column_name in unknown:
        definition.column(column_name)
    lengths = {key: len(value) for key, value in columns.items() if _is_sequence(value)}
    num_rows = next(iter(lengths.values()), 1)
    for key, length in lengths.items():
        if length != num_rows:
            raise TraceFormatError(f"table '{name}': column '{key}' has {length} values, others have {num_rows}")
    arrays = []
    for column in definition.columns:
        try:
            arrays.append(_array(name, column, columns.get(column.name), num_rows))
        except (pa.ArrowException, OverflowError) as error:
            raise TraceFormatError(f"table '{name}': column '{column.name}' is not {column.type}: {error}") from error
    return pa.RecordBatch.from_arrays(arrays, schema=arrow_schema(name))


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray | pa.Array | pa.ChunkedArray)


def _array(table_name: str, column: Column, value: Any, num_rows: int) -> pa.Array:
    if value is None:
        if not column.nullable:
            raise TraceFormatError(f"table '{table_name}': column '{column.name}' must not be null, and was not given")
        return pa.nulls(num_rows, column.arrow_type)
    if not _is_sequence(value):
        return pa.repeat(pa.scalar(value, column.arrow_type), num_rows)
    if isinstance(value, np.ndarray) and value.ndim == 2:
        flat = pa.array(np.ascontiguousarray(value).reshape(-1), column.arrow_type.value_type)
        offsets = np.arange(0, value.size + 1, value.shape[1]) if value.shape[1] else np.zeros(num_rows + 1)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
    if isinstance(value, pa.ChunkedArray):
        value = value.combine_chunks()
    array = value if isinstance(value, pa.Array) else pa.array(value, column.arrow_type)
    array = array if array.type == column.arrow_type else array.cast(column.arrow_type)
    if array.null_count and not column.nullable:
        raise TraceFormatError(f"table '{table_name}': column '{column.name}' must not be null; {array.null_count} are")
    return array
