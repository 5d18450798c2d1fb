"""Reads the parts that are compacted, piece by piece, in the columns of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tracekit.store.compaction.plan import Sources
from tracekit.store.conforming import conform, unreadable

_PIECE_BYTES = 16 << 20
_NUM_SAMPLES = 8


def read_pieces(sources: Sources, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yields the rows of all parts in the order of writing, about 16 MiB at a time.

    Raises:
        TraceFormatError: a part cannot be read.
    """
    for path in sources.files.values():
        yield from _read(path, schema)


def estimated_bytes(sources: Sources, schema: pa.Schema) -> int:
    """Returns about how many Arrow bytes the rows take, from the first piece of some parts."""
    filled = [segment for segment, num_rows in sources.num_rows.items() if num_rows]
    num_rows = num_bytes = 0
    for segment in filled[:: max(1, len(filled) // _NUM_SAMPLES)]:
        piece = next(_read(sources.files[segment], schema))
        num_rows += piece.num_rows
        num_bytes += piece.nbytes
    return sources.total_rows * num_bytes // max(1, num_rows)


def _read(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.metadata
            encoded = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
            # Encoded rows are smaller than Arrow's, by dictionaries and by nulls; half is no less than enough.
            batch_rows = max(1, min(131_072, _PIECE_BYTES * metadata.num_rows // max(1, 2 * encoded)))
            for batch in file.iter_batches(batch_rows):
                if batch.num_rows:
                    yield conform(pa.Table.from_batches([batch]), schema, path)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
