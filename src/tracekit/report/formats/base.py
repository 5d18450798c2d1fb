"""The contract of a format, and the registry that finds one by name.

A format is a module of this folder, or of another package that names it in the entry-point group `tracekit.formats`. It
has one function, `write`, as `Write` describes it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from tracekit.errors import ConfigError, QueryError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

ENTRY_POINTS = "tracekit.formats"

# In the order in which help shows them; those of others come behind.
_FIRST = ("table", "csv", "json", "parquet", "md")
# Not for a terminal.
BINARY = frozenset({"parquet"})


class Rows(Protocol):
    """What can be written: a `Result`, or an Arrow table as `TableRows`."""

    @property
    def schema(self) -> pa.Schema: ...

    def batches(self) -> Iterator[pa.RecordBatch]: ...


class Write(Protocol):
    """Writes all rows.

    Args:
        rows: the rows; read once, as a stream where the format allows it.
        sink: where the bytes go; it stays open.

    Raises:
        QueryError: the query failed while it ran, or its columns do not fit the format.
    """

    def __call__(self, rows: Rows, sink: BinaryIO) -> None: ...


@dataclass(frozen=True)
class TableRows:
    """Rows of an Arrow table."""

    table: pa.Table

    @property
    def schema(self) -> pa.Schema:
        return self.table.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield from self.table.to_batches()


def format_names() -> list[str]:
    """Returns the names of all formats, loading none."""
    own = [found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]) if found.name != "base"]
    others = sorted(point.name for point in entry_points(group=ENTRY_POINTS))
    return sorted(own, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)) + others


def writer(name: str) -> Write:
    """Returns the function that writes rows in a format.

    Raises:
        ConfigError: there is no such format; names the nearest one.
    """
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            theirs: Write = point.load()
            return theirs
    if name not in format_names():
        raise ConfigError(f"no format '{name}'{nearest(name, format_names())}")
    write: Write = importlib.import_module(f"{__package__}.{name}").write
    return write


def python_rows(rows: Rows) -> Iterator[tuple[Any, ...]]:
    """Yields rows as tuples of Python values, a batch in memory at a time."""
    for batch in rows.batches():
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def check_names(rows: Rows, format_name: str) -> None:
    """Raises QueryError where two columns have one name, for formats that find columns by name."""
    names = list(rows.schema.names)
    for name in names:
        if names.count(name) > 1:
            raise QueryError(f"two columns are called '{name}', which {format_name} cannot hold; rename one with AS")
