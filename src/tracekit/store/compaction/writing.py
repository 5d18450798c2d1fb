"""Writes the part of one bucket, in row groups of a size that readers like."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from tracekit.store.layout import Segment
from tracekit.store.parts import PartWriter

# DuckDB's own size of a row group, the unit that its threads work on; fewer where rows are large.
GROUP_ROWS = 122_880
GROUP_BYTES = 32 << 20


class CancelledError(Exception):
    """Another bucket failed, or the user lost patience."""


def write_bucket(
    root: Path, segment: Segment, schema: pa.Schema, rows: Iterable[pa.Table], cancelled: threading.Event
) -> Path | None:
    """Writes rows as a part that no reader sees yet.

    Returns:
        The file that it stands in; None where there are no rows.

    Raises:
        CancelledError: `cancelled` was set.
        OSError: it cannot be written.
    """
    part: PartWriter | None = None
    try:
        for group in _groups(rows):
            if cancelled.is_set():
                raise CancelledError
            if part is None:
                part = PartWriter(segment.part(root), schema)
            part.write(group)
        return None if part is None else part.complete()
    except BaseException:
        if part is not None:
            part.discard()
        raise


def _groups(rows: Iterable[pa.Table]) -> Iterable[pa.Table]:
    """Cuts and joins chunks to row groups; chunks are no larger than a group is."""
    gathered: list[pa.Table] = []
    num_rows = num_bytes = 0
    for chunk in rows:
        gathered.append(chunk)
        num_rows += chunk.num_rows
        num_bytes += chunk.nbytes
        while num_rows >= GROUP_ROWS:
            whole = pa.concat_tables(gathered)
            yield whole.slice(0, GROUP_ROWS)
            gathered = [whole.slice(GROUP_ROWS)]
            num_rows -= GROUP_ROWS
            num_bytes = gathered[0].nbytes
        if num_bytes >= GROUP_BYTES:
            yield pa.concat_tables(gathered)
            gathered, num_rows, num_bytes = [], 0, 0
    if num_rows:
        yield pa.concat_tables(gathered)
