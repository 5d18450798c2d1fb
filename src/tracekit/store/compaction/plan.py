"""What a compaction of one table has to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tracekit.schema import table as definition
from tracekit.store.compaction.buckets import MAX_BITS
from tracekit.store.conforming import check_version, unreadable
from tracekit.store.current import current_parts
from tracekit.store.layout import EMPTY_WRITER, Bucket, Segment, journal_segments

# Of `tokens`. A count of rows, not of bytes: compacting does not change it, so a second run has nothing to do.
BUCKET_ROWS = 1 << 21


@dataclass(frozen=True)
class Sources:
    """The parts of one table that a compaction takes.

    Attributes:
        table: the table.
        files: by segment, in order; each is sealed and no journal of it is left.
        schemas: of each file.
        num_rows: of each file.
        num_bytes: of all files, on the disk.
    """

    table: str
    files: dict[Segment, Path]
    schemas: dict[Segment, pa.Schema]
    num_rows: dict[Segment, int]
    num_bytes: int

    @classmethod
    def of(cls, root: Path, table: str) -> Sources:
        """Finds them, and reads their footers.

        Raises:
            TraceFormatError: a part cannot be read, or is of an unknown major version.
        """
        # Parts first: what is no journal after that will never again be one. The journal of a part that was sealed
        # just now still stands, and would count again if the part were gone.
        parts = current_parts(root, table).files
        journals = set(journal_segments(root, table))
        files = {
            segment: path
            for segment, path in parts.items()
            if segment.writer != EMPTY_WRITER and segment not in journals
        }
        footers = {segment: _footer(path) for segment, path in files.items()}
        return cls(
            table,
            files,
            {segment: schema for segment, (schema, _) in footers.items()},
            {segment: rows for segment, (_, rows) in footers.items()},
            sum(path.stat().st_size for path in files.values()),
        )

    @property
    def total_rows(self) -> int:
        return sum(self.num_rows.values())

    def is_compacted(self, num_buckets: int) -> bool:
        """Tells whether there is nothing to gain: at most one part a bucket, and nothing else."""
        buckets = [Bucket.of(segment) for segment in self.files]
        wanted = num_buckets if is_bucketed(self.table) else 1
        return len(set(buckets)) == len(buckets) and all(
            bucket is not None and bucket.num_buckets == wanted for bucket in buckets
        )


def is_bucketed(table: str) -> bool:
    """Tells whether each row of a table belongs to a request."""
    return any(column.name == "request_id" and not column.nullable for column in definition(table).columns)


def num_buckets_for(tokens: Sources) -> int:
    """Returns how many buckets a trace gets by default: as many as it has, and enough for its tokens."""
    enough = 1
    while enough * BUCKET_ROWS < tokens.total_rows and enough < 1 << MAX_BITS:
        enough *= 2
    return max([enough, *(bucket.num_buckets for bucket in _buckets(tokens))])


def _buckets(sources: Sources) -> Iterator[Bucket]:
    for segment in sources.files:
        bucket = Bucket.of(segment)
        if bucket is not None:
            yield bucket


def _footer(path: Path) -> tuple[pa.Schema, int]:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            check_version(schema, path)
            return schema, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
