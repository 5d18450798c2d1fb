"""Reads a trace: its parts, and the journals that no part has replaced yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tracekit.errors import TraceFormatError
from tracekit.schema import arrow_schema
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
        while True:
            journals: dict[Segment, list[pa.RecordBatch]] = {}
            try:
                for segment in journal_segments(self.path, table):
                    journals[segment] = list(read_journal(segment.journal(self.path)))
            except FileNotFoundError:
                continue  # A writer sealed it just now: its part is there.
            # Parts are listed last, so a journal sealed meanwhile is known by its part.
            parts = part_segments(self.path, table)
            batches = [batch for segment, found in journals.items() if segment not in parts for batch in found]
            rows = pa.Table.from_batches(batches, batches[0].schema if batches else arrow_schema(table))
            return Snapshot(tuple(segment.part(self.path) for segment in parts), _conform(rows, table))

    def read(self, table: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Returns all rows of a table, in memory, in the columns of this release.

        Args:
            table: a table of the format.
            columns: the columns wanted; all by default.

        Raises:
            TraceFormatError: a part cannot be read.
        """
        snapshot = self.snapshot(table)
        pieces = [_conform(_read_part(path, columns), table, columns) for path in snapshot.parts]
        pieces.append(_conform(snapshot.journal_rows, table, columns))
        return pa.concat_tables(pieces)

    def num_rows(self, table: str) -> int:
        """Returns how many rows a table has, reading Parquet footers and journals only."""
        snapshot = self.snapshot(table)
        return sum(_metadata(path).num_rows for path in snapshot.parts) + snapshot.journal_rows.num_rows

    def num_bytes(self, table: str) -> int:
        """Returns the bytes that a table's parts and journals take on disk, the zero-row part apart."""
        files = [
            segment.part(self.path) for segment in part_segments(self.path, table) if segment.writer != EMPTY_WRITER
        ]
        files += [segment.journal(self.path) for segment in journal_segments(self.path, table)]
        return sum(path.stat().st_size for path in files if path.exists())


def _metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise TraceFormatError(_unreadable(path, error)) from error


def _read_part(path: Path, columns: Sequence[str] | None) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        present = [name for name in columns if name in file.schema_arrow.names] if columns else None
        return file.read(columns=present)
    except (pa.ArrowInvalid, OSError) as error:
        raise TraceFormatError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    reason = str(error).splitlines()[0]
    return f"{path} cannot be read as a Parquet part ({reason}); restore it, or move it away to read the rest"


def _conform(rows: pa.Table, table: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Gives rows this release's columns: unknown ones are left out, missing ones become null."""
    schema = arrow_schema(table)
    wanted = [schema.field(name) for name in columns] if columns else list(schema)
    arrays = [
        rows.column(field.name) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in wanted
    ]
    return pa.table(arrays, schema=pa.schema(wanted, schema.metadata))
