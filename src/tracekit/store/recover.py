"""Turns the journals that dead writers left into parts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from tracekit.schema import arrow_schema, table_names
from tracekit.store.journal import read_journal
from tracekit.store.layout import JOURNAL, journal_segments, lease_path, part_segments
from tracekit.store.lease import is_live
from tracekit.store.manifest import Manifest
from tracekit.store.parts import write_part


def recover(root: Path) -> dict[str, int]:
    """Seals every journal whose writer no longer runs; may be repeated and interrupted at any time.

    Returns:
        Rows brought into parts, by table.

    Raises:
        NotATraceError, TraceFormatError: `root` is no trace of this format.
    """
    Manifest.read(root)
    recovered: dict[str, int] = {}
    for table in table_names():
        sealed = set(part_segments(root, table))
        for segment in journal_segments(root, table):
            if is_live(lease_path(root, segment.writer)):
                continue
            journal = segment.journal(root)
            batches = list(read_journal(journal))
            if segment not in sealed and batches:
                write_part(pa.Table.from_batches(batches, arrow_schema(table)), segment.part(root))
                recovered[table] = recovered.get(table, 0) + sum(batch.num_rows for batch in batches)
            journal.unlink()
    for lease in (root / JOURNAL).glob("*.lease"):
        if not is_live(lease):
            lease.unlink(missing_ok=True)
    return recovered
