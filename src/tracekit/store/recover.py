"""Turns the journals that dead writers left into parts, and brings a compaction to its end that was killed."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from tracekit.errors import InputError
from tracekit.schema import table_names
from tracekit.store.intent import Intent
from tracekit.store.journal import read_journal
from tracekit.store.layout import (
    COMPACTOR,
    JOURNAL,
    journal_segments,
    lease_path,
    unfinished_intent_path,
    unfinished_parts,
)
from tracekit.store.lease import is_live, remove_if_dead
from tracekit.store.manifest import Manifest
from tracekit.store.parts import write_part
from tracekit.store.pending import finish_pending

# How long readers of a trace are waited for; what waits for them goes with the next recovery.
PATIENCE_SECONDS = 1.0


def recover(root: Path | str) -> dict[str, int]:
    """Seals every journal whose writer no longer runs; may be repeated and interrupted at any time.

    What a killed `compact` had put into force gets its files in place, and what it had not is removed.

    Returns:
        Rows brought into parts, by table.

    Raises:
        NotATraceError, TraceFormatError: `root` is no trace of this format.
        InputError: it cannot be written to.
    """
    root = Path(root)
    Manifest.read(root)
    if not (root / JOURNAL).is_dir():
        return {}
    try:
        with _one_at_a_time(root):
            recovered = {table: _recover_table(root, table) for table in table_names()}
            for lease in (root / JOURNAL).glob("*.lease"):
                remove_if_dead(lease)
    except OSError as error:
        raise InputError(
            f"{root} cannot be recovered: {error.strerror or error} ({error.filename or 'while writing'}); "
            "nothing is lost: put that right and recover again"
        ) from error
    return {table: num_rows for table, num_rows in recovered.items() if num_rows}


@contextlib.contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    with (root / JOURNAL / ".recover.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _recover_table(root: Path, table: str) -> int:
    num_rows = 0
    finish_pending(root, table, PATIENCE_SECONDS)
    for segment in journal_segments(root, table):
        if is_live(lease_path(root, segment.writer)):
            continue
        journal = segment.journal(root)
        if not segment.part(root).exists():
            try:
                batches = list(read_journal(journal))
            except FileNotFoundError:
                continue  # Its writer ended in good order just now.
            if batches:
                # In the writer's own columns: those of a newer minor version are kept.
                write_part(pa.Table.from_batches(batches), segment.part(root))
                num_rows += sum(batch.num_rows for batch in batches)
        journal.unlink(missing_ok=True)
    if not is_live(lease_path(root, COMPACTOR)):
        unfinished_intent_path(root, table).unlink(missing_ok=True)
    intent = Intent.read(root, table)
    awaited = set() if intent is None else set(intent.new.values())
    for writer, unfinished in unfinished_parts(root, table):
        if unfinished.name not in awaited and not is_live(lease_path(root, writer)):
            unfinished.unlink(missing_ok=True)
    return num_rows
