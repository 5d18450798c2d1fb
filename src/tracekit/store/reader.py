"""Reads a trace: its parts, and the journals that no part has replaced yet."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tracekit.schema import arrow_schema
from tracekit.schema import table as definition
from tracekit.store.conforming import check_version, conform, unreadable
from tracekit.store.current import current_parts
from tracekit.store.hold import Hold
from tracekit.store.journal import read_journal
from tracekit.store.layout import EMPTY_WRITER, Segment, journal_segments
from tracekit.store.manifest import Manifest


@dataclass(frozen=True)
class Snapshot:
    """One table at one moment.

    Attributes:
        parts: its Parquet files, the zero-row one included.
        journal_rows: rows that stand in journals only.
        hold: keeps these files in place while it is referred to; a compaction waits for that.
    """

    parts: tuple[Path, ...]
    journal_rows: pa.Table
    hold: Hold


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
        hold = Hold(self.path)
        journals: dict[Segment, list[pa.RecordBatch]] = {}
        for segment in journal_segments(self.path, table):
            # A journal that has gone was sealed just now: its part is there.
            with contextlib.suppress(FileNotFoundError):
                journals[segment] = list(read_journal(segment.journal(self.path)))
        # Parts are listed last, so a journal sealed meanwhile is known by its part.
        parts = current_parts(self.path, table)
        pieces = [
            conform(pa.Table.from_batches(batches), arrow_schema(table), segment.journal(self.path))
            for segment, batches in journals.items()
            if batches and segment not in parts
        ]
        rows = pa.concat_tables(pieces) if pieces else arrow_schema(table).empty_table()
        return Snapshot(tuple(parts.files.values()), rows, hold)

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
        schema = arrow_schema(table)
        if names is not None:
            schema = pa.schema([schema.field(name) for name in names], schema.metadata)
        snapshot = self.snapshot(table)
        pieces = [conform(_read_part(path, names), schema, path) for path in snapshot.parts]
        pieces.append(snapshot.journal_rows.select(names) if names is not None else snapshot.journal_rows)
        return pa.concat_tables(pieces)

    def read_part(self, table: str, path: Path, columns: Sequence[str]) -> pa.Table:
        """Returns some columns of one part of a snapshot, in memory, in the columns of this release.

        Raises:
            TraceFormatError: the part cannot be read, or the format has no such table or column.
        """
        whole = arrow_schema(table)
        for name in columns:
            definition(table).column(name)
        schema = pa.schema([whole.field(name) for name in columns], whole.metadata)
        return conform(_read_part(path, tuple(columns)), schema, path)

    def num_rows(self, table: str) -> int:
        """Returns how many rows a table has, reading Parquet footers and journals only."""
        snapshot = self.snapshot(table)
        return int(sum(_metadata(path).num_rows for path in snapshot.parts) + snapshot.journal_rows.num_rows)

    def num_bytes(self, table: str) -> int:
        """Returns the bytes that a table's parts and journals take on disk, the zero-row part apart."""
        parts = current_parts(self.path, table)
        files = [path for segment, path in parts.files.items() if segment.writer != EMPTY_WRITER]
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
        raise unreadable(path, error) from error


def _read_part(path: Path, columns: Sequence[str] | None) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            check_version(schema, path)
            present = [name for name in columns if name in schema.names] if columns is not None else None
            return file.read(columns=present)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
