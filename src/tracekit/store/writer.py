"""The one way rows get into a trace, for recording, replaying and trainers alike."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import pyarrow as pa

from tracekit.errors import InputError
from tracekit.schema import arrow_schema, record_batch, table_names
from tracekit.store.current import first_free_segment
from tracekit.store.journal import JournalWriter, read_journal
from tracekit.store.layout import Segment, is_writer_name, lease_path
from tracekit.store.lease import Lease
from tracekit.store.manifest import Manifest
from tracekit.store.parts import PartWriter

PART_BYTES = 32 << 20
FLUSH_SECONDS = 1.0
# Of a part. Memory holds one of them, since a recorder's must stay flat.
_ROW_GROUPS = 4


Checkpoint: TypeAlias = dict[str, int]
"""By table, the number of a writer's first part that is not covered."""


class TraceWriter:
    """Appends rows to an existing trace as one writer.

    Rows are buffered, journalled at least once a second, and sealed into a Parquet part when `part_bytes`
    have gathered and at the end; memory holds little more than a quarter of that. A
    process that is killed loses at most what it had not journalled.

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
                f"writer name '{self.writer}' may hold letters, digits, '_' and '-' only, "
                "and not be 'empty', 'compact' or begin with 'compact-'"
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
            open_table = self._tables[table] = _OpenTable(self.root, table, self.writer, self._part_bytes)
        open_table.add(batch)
        if open_table.is_full:
            self.flush()
        self.flush_if_due()
        return int(batch.num_rows)

    def flush_if_due(self) -> None:
        """Journals what is buffered when `flush_seconds` have passed since the last time."""
        if time.monotonic() - self._last_flush >= self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Journals what is buffered, and seals tables that are large enough into parts."""
        self._for_each_table(_OpenTable.save)

    def seal(self) -> None:
        """Turns everything written so far into parts."""
        self._for_each_table(_OpenTable.seal)

    def checkpoint(self) -> Checkpoint:
        """Turns everything written so far into parts, and returns where that ends, for `roll_back`."""
        self.seal()
        ends = {name: first_free_segment(self.root, name, self.writer) for name in table_names()}
        return {name: segment.seq for name, segment in ends.items()}

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
    """The rows of one table that are in no finished part yet.

    They pass from memory to the journal, and from there, a row group at a time, to the part in the making. Where that
    part fails, it is made once more from the journal.
    """

    def __init__(self, root: Path, table: str, writer: str, part_bytes: int) -> None:
        self._root = root
        self._schema = arrow_schema(table)
        self._part_bytes = part_bytes
        self._begin(first_free_segment(root, table, writer))

    def _begin(self, segment: Segment) -> None:
        self._segment = segment
        self._num_bytes = self._num_buffered_bytes = 0
        self._buffered: list[pa.RecordBatch] = []
        # Journalled, and not in the part in the making.
        self._journalled: list[pa.RecordBatch] = []
        self._journal: JournalWriter | None = None
        self._journal_error: OSError | None = None
        self._num_in_journal = 0
        # Batches that stand in the journal alone, since a part that held them failed.
        self._num_only_in_journal = 0
        self._part: PartWriter | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        self._buffered.append(batch)
        num_bytes = batch.nbytes
        self._num_bytes += num_bytes
        self._num_buffered_bytes += num_bytes

    @property
    def is_full(self) -> bool:
        """Whether a row group waits to be journalled."""
        return self._num_buffered_bytes * _ROW_GROUPS >= self._part_bytes

    @property
    def num_unsaved(self) -> int:
        return sum(batch.num_rows for batch in self._buffered)

    def save(self) -> None:
        """Journals what is buffered, or seals it all where that is enough for a part."""
        if self._num_bytes < self._part_bytes:
            self._flush()
            return
        try:
            self.seal()
        except BaseException:
            self._flush()
            raise

    def _flush(self) -> None:
        if not self._buffered:
            return
        if self._journal_error is not None:
            raise self._journal_error
        batch = pa.concat_batches(self._buffered)
        try:
            if self._journal is None:
                self._journal = JournalWriter(self._segment.journal(self._root), self._schema)
            self._journal.append(batch)
        except OSError as error:
            self._journal_error = error
            raise
        self._num_in_journal += 1
        self._journalled.append(batch)
        self._buffered.clear()
        self._num_buffered_bytes = 0
        if sum(batch.nbytes for batch in self._journalled) * _ROW_GROUPS >= self._part_bytes:
            # Where it fails, the journal has the rows, and they are tried again with the next ones.
            with contextlib.suppress(OSError):
                self._put_into_part()

    def seal(self) -> None:
        """Makes a part of everything since the last one."""
        if not self._num_in_journal and not self._buffered:
            return
        self._put_into_part(finish=True)
        if self._journal is not None:
            self._journal.close()
        self._segment.journal(self._root).unlink(missing_ok=True)
        self._begin(replace(self._segment, seq=self._segment.seq + 1))

    def _put_into_part(self, *, finish: bool = False) -> None:
        part = self._part
        try:
            if part is None:
                part = self._part = PartWriter(self._segment.part(self._root), self._schema)
                for batch in self._lost():
                    part.write(pa.Table.from_batches([batch]))
            rows = self._journalled + (self._buffered if finish else [])
            if rows:
                part.write(pa.Table.from_batches(rows))
            self._journalled = []
            if finish:
                part.finish()
                self._forget_part()
        except BaseException:  # also where someone lost patience: half a row group would be doubled by the next try
            if part is not None:
                part.discard()
            self._forget_part()
            raise

    def _forget_part(self) -> None:
        self._part = None
        self._journalled = []
        self._num_only_in_journal = self._num_in_journal

    def _lost(self) -> Iterator[pa.RecordBatch]:
        """Yields what stood in a part that failed, from the journal."""
        if self._num_only_in_journal:
            journal = self._segment.journal(self._root)
            found = list(itertools.islice(read_journal(journal), self._num_only_in_journal))
            if len(found) < self._num_only_in_journal:
                raise OSError(errno.EIO, "it was changed while it was written", str(journal))
            yield from found
