"""The one way rows get into a trace, for recording, replaying and trainers alike."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from tracekit.errors import InputError
from tracekit.schema import arrow_schema, record_batch
from tracekit.store.journal import JournalWriter
from tracekit.store.layout import first_free_segment, is_writer_name, lease_path
from tracekit.store.lease import Lease
from tracekit.store.manifest import Manifest
from tracekit.store.parts import write_part

PART_BYTES = 32 << 20
FLUSH_SECONDS = 1.0


class TraceWriter:
    """Appends rows to an existing trace as one writer.

    Rows are buffered, journalled at least once a second, and sealed into a Parquet part when `part_bytes`
    have gathered and at the end. A process that is killed loses at most what it had not journalled.

    Where the disk is full, `append`, `flush` and `seal` raise, and what was journalled before stays. A later
    `seal` that finds room writes everything that was appended.

    Not thread-safe: one thread owns a writer, and calls `flush_if_due` when it has nothing else to do.

    Args:
        root: the trace directory, made by `create_trace`.
        run_id: the run these rows belong to; filled into every row.
        writer: a name for this process, not that of another living writer of the trace; letters, digits,
            '_' and '-'.
        part_bytes: Arrow bytes of one table that make a part.
        flush_seconds: longest time a row stays out of the journal.

    Raises:
        NotATraceError, TraceFormatError: `root` is no trace this release can write to.
        InputError: the name cannot be used, or the trace cannot be written to.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        run_id: str,
        writer: str | None = None,
        part_bytes: int = PART_BYTES,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self.root = Path(root)
        self.manifest = Manifest.read(self.root)
        self.run_id = run_id
        self.writer = writer or f"{self.manifest.role}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        if not is_writer_name(self.writer):
            raise InputError(
                f"writer name '{self.writer}' may hold letters, digits, '_' and '-' only, and not be 'empty'"
            )
        self._part_bytes = part_bytes
        self._flush_seconds = flush_seconds
        self._last_flush = time.monotonic()
        self._tables: dict[str, _OpenTable] = {}
        self._closed = False
        try:
            self._lease = Lease(lease_path(self.root, self.writer), run_id)
        except OSError as error:
            raise self._unwritable(error) from error

    def append(self, table: str, columns: Mapping[str, Any]) -> int:
        """Adds rows to a table; returns how many.

        Args:
            table: a table of the format.
            columns: values by column, see `schema.record_batch`; `run_id` is filled in.
        """
        if self._closed:
            raise ValueError(f"writer '{self.writer}' is closed")
        batch = record_batch(table, {"run_id": self.run_id, **columns})
        open_table = self._tables.get(table)
        if open_table is None:
            open_table = self._tables[table] = _OpenTable(self.root, table, self.writer)
        open_table.add(batch)
        self.flush_if_due()
        return int(batch.num_rows)

    def flush_if_due(self) -> None:
        """Journals what is buffered when `flush_seconds` have passed since the last time."""
        if time.monotonic() - self._last_flush >= self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Journals what is buffered, and seals tables that are large enough into parts."""
        self._for_each_table(lambda table: table.seal() if table.num_bytes >= self._part_bytes else table.flush())

    def seal(self) -> None:
        """Turns everything written so far into parts."""
        self._for_each_table(lambda table: table.seal())

    def num_unsaved(self, table: str) -> int:
        """Returns how many rows of a table stand neither in a part nor in the journal."""
        open_table = self._tables.get(table)
        return 0 if open_table is None else open_table.num_unsaved

    def close(self) -> None:
        """Seals everything and gives up the lease, which lets `recover` have what could not be sealed."""
        try:
            self.seal()
        finally:
            self._closed = True
            self._lease.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _for_each_table(self, action: Callable[[_OpenTable], None]) -> None:
        """Does it for all of them, also where one fails; then raises the first failure."""
        self._last_flush = time.monotonic()
        failures = []
        for table in self._tables.values():
            try:
                action(table)
            except OSError as error:
                failures.append(error)
        if failures:
            raise self._unwritable(failures[0]) from failures[0]

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"{self.root} cannot be written to: {error.strerror or error}; what was flushed before is kept: "
            f"make room, then `tracekit recover {self.root}`"
        )


class _OpenTable:
    """The rows of one table that are in no part yet."""

    def __init__(self, root: Path, table: str, writer: str) -> None:
        self._root = root
        self._segment = first_free_segment(root, table, writer)
        self._buffered: list[pa.RecordBatch] = []
        self._journalled: list[pa.RecordBatch] = []
        self._journal: JournalWriter | None = None
        self._journal_error: OSError | None = None
        self.num_bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self._buffered.append(batch)
        self.num_bytes += batch.nbytes

    @property
    def num_unsaved(self) -> int:
        return sum(batch.num_rows for batch in self._buffered)

    def flush(self) -> None:
        if not self._buffered:
            return
        if self._journal_error is not None:
            raise self._journal_error
        batch = pa.concat_batches(self._buffered)
        try:
            if self._journal is None:
                path = self._segment.journal(self._root)
                self._journal = JournalWriter(path, arrow_schema(self._segment.table))
            self._journal.append(batch)
        except OSError as error:
            self._journal_error = error
            raise
        self._journalled.append(batch)
        self._buffered.clear()

    def seal(self) -> None:
        rows = self._journalled + self._buffered
        if not rows:
            return
        write_part(pa.Table.from_batches(rows), self._segment.part(self._root))
        if self._journal is not None:
            self._journal.close()
        self._segment.journal(self._root).unlink(missing_ok=True)
        self._segment = replace(self._segment, seq=self._segment.seq + 1)
        self._journal = self._journal_error = None
        self._journalled, self._buffered, self.num_bytes = [], [], 0
