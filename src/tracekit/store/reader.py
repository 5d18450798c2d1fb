"""Reads a trace: its parts, and the journals that no part has replaced yet."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tracekit.errors import TraceFormatError
from tracekit.schema import FORMAT_VERSION, MAJOR, VERSION_KEY, arrow_schema
from tracekit.schema import table as definition
from tracekit.store.journal import read_journal
from tracekit.store.layout import EMPTY_WRITER, Segment, journal_segments, part_segments
from tracekit.store.manifest import Manifest


@dataclass(frozen=True)
class Snapshot:
    """One table at one moment.

    Attributes:
        parts: its Parquet files, the zero-row one included.
        journal_rows: rows that stand in journals only.
    """

    parts: tuple[Path, ...]
    journal_rows: pa.Table


class Trace:
    """A trace directory opened for reading.

    Attributes:
        path: the directory.
        manifest: its manifest.

    Raises:
        NotATraceError: the path holds no trace.
        TraceFormatError: a format version that this release does not know.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = Manifest.read(self.path)

    def snapshot(self, table: str) -> Snapshot:
        """Returns one consistent view of a table, also while writers are at work: no row twice, none missing."""
        journals: dict[Segment, list[pa.RecordBatch]] = {}
        for segment in journal_segments(self.path, table):
            # A journal that has gone was sealed just now: its part is there.
            with contextlib.suppress(FileNotFoundError):
                journals[segment] = list(read_journal(segment.journal(self.path)))
        # Parts are listed last, so a journal sealed meanwhile is known by its part.
        parts = part_segments(self.path, table)
        pieces = [
            _conform(pa.Table.from_batches(batches), table, segment.journal(self.path))
            for segment, batches in journals.items()
            if batches and segment not in parts
        ]
        rows = pa.concat_tables(pieces) if pieces else arrow_schema(table).empty_table()
        return Snapshot(tuple(segment.part(self.path) for segment in parts), rows)

    def read(self, table: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Returns all rows of a table, in memory, in the columns of this release.

        Args:
            table: a table of the format.
            columns: the columns wanted; all by default.

        Raises:
            TraceFormatError: a part cannot be read, or the format has no such table or column.
        """
        names = tuple(columns) if columns is not None else None
        for name in names or ():
            definition(table).column(name)
        snapshot = self.snapshot(table)
        pieces = [_conform(_read_part(path, names), table, path, names) for path in snapshot.parts]
        pieces.append(snapshot.journal_rows.select(names) if names is not None else snapshot.journal_rows)
        return pa.concat_tables(pieces)

    def num_rows(self, table: str) -> int:
        """Returns how many rows a table has, reading Parquet footers and journals only."""
        snapshot = self.snapshot(table)
        return int(sum(_metadata(path).num_rows for path in snapshot.parts) + snapshot.journal_rows.num_rows)

    def num_bytes(self, table: str) -> int:
        """Returns the bytes that a table's parts and journals take on disk, the zero-row part apart."""
        parts = part_segments(self.path, table)
        files = [segment.part(self.path) for segment in parts if segment.writer != EMPTY_WRITER]
        journals = [segment for segment in journal_segments(self.path, table) if segment not in parts]
        files += [segment.journal(self.path) for segment in journals]
        return sum(_size(path) for path in files)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0  # It was sealed just now.


def _metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise TraceFormatError(_unreadable(path, error)) from error


def _read_part(path: Path, columns: Sequence[str] | None) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_version(schema, path)
            present = [name for name in columns if name in schema.names] if columns is not None else None
            return file.read(columns=present)
    except (pa.ArrowException, OSError) as error:
        raise TraceFormatError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return f"{path} cannot be read as a Parquet part ({reason}); restore it, or move it away to read the rest"


def _check_version(schema: pa.Schema, path: Path) -> None:
    version = (schema.metadata or {}).get(VERSION_KEY, FORMAT_VERSION.encode()).decode()
    if version.partition(".")[0] != str(MAJOR):
        raise TraceFormatError(f"{path} has trace format {version}, this tracekit reads {MAJOR}.x; move it away")


def _conform(rows: pa.Table, table: str, path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Gives rows this release's columns: unknown ones are left out, missing ones become null."""
    schema = arrow_schema(table)
    wanted = [schema.field(name) for name in columns] if columns is not None else list(schema)
    arrays = []
    for field in wanted:
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
    return pa.table(arrays, schema=pa.schema(wanted, schema.metadata))
