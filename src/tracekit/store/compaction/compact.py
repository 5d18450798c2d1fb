"""Compacts a trace, table by table; each changes for readers in one moment, whenever this is interrupted."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from tracekit.errors import ConfigError, InputError
from tracekit.limits import Limits
from tracekit.memory import peak_memory
from tracekit.schema import table_names
from tracekit.store.compaction.bucketing import Budget, joined_part, new_parts
from tracekit.store.compaction.buckets import MAX_BITS, RequestKeys
from tracekit.store.compaction.plan import Sources, is_bucketed, num_buckets_for
from tracekit.store.compaction.progress import Counter, Progress
from tracekit.store.intent import Intent
from tracekit.store.layout import COMPACTOR, JOURNAL, PARTIAL_SUFFIX, lease_path
from tracekit.store.lease import Lease
from tracekit.store.manifest import Manifest
from tracekit.store.pending import finish_pending
from tracekit.store.reader import Trace
from tracekit.store.recover import recover

_MEMORY_BYTES = 1 << 30
_MOST_THREADS = 4
# How long readers are waited for. What is committed then stands, and its old files stay for as long as they read.
PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Compacted:
    """What a compaction did; a table that had nothing to gain counts with what it has.

    Attributes:
        path: the trace.
        num_buckets: of its requests.
        parts_before, parts_after: Parquet files, without the zero-row ones and those of journals that still stand.
        bytes_before, bytes_after: of these files.
        num_rows: rows written anew.
        postponed: tables whose old files are still being read: they go with the next `compact` or `recover`.
        seconds: the time it took.
        peak_bytes: largest resident memory of this process so far.
    """

    path: Path
    num_buckets: int
    parts_before: int
    parts_after: int
    bytes_before: int
    bytes_after: int
    num_rows: int
    postponed: tuple[str, ...]
    seconds: float
    peak_bytes: int


def compact(
    path: Path | str,
    *,
    num_buckets: int | None = None,
    limits: Limits | None = None,
    progress: Callable[[Progress], None] | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Compacted:
    """Joins the sealed parts of a trace into one a bucket, sorted by request and position.

    Requests with equal prompts are in equal buckets, of this trace and any other; twice as many buckets are halves of
    these. Journals of dead writers are recovered first. Those of living writers are left alone, and so are their parts
    in the making. Readers see each row once at any moment. Where it is killed, the next one goes on or begins again.

    Args:
        path: the trace.
        num_buckets: a power of two, at most 16,384; by default one for each two million tokens, and no less than
            there are.
        limits: memory (1 GiB by default; what the program needs itself comes on top), threads, and where rows are
            dealt out, by default in the trace itself.
        progress: is told how far it is, also from other threads.
        patience_seconds: how long readers are waited for.

    Raises:
        NotATraceError, TraceFormatError: no trace, or a part that cannot be read.
        ConfigError: an impossible number of buckets.
        InputError: it is being compacted, is an unfinished replay, or cannot be written to.
    """
    started = time.monotonic()
    root = Path(path)
    Manifest.read(root)
    if num_buckets is not None and not (0 < num_buckets <= 1 << MAX_BITS and num_buckets.bit_count() == 1):
        raise ConfigError(f"{num_buckets} buckets: give a power of two, at most {1 << MAX_BITS:,}")
    if root.name.endswith(PARTIAL_SUFFIX):
        raise InputError(f"{root} is a replay in the making, which counts its parts; finish the replay first")
    recover(root)
    with _at_work(root):
        tokens = Sources.of(root, "tokens")
        run = _Run(root, num_buckets or num_buckets_for(tokens), _budget(root, limits or Limits()), progress)
        for table in table_names():
            run.compact(table, patience_seconds)
    return Compacted(
        path=root,
        num_buckets=run.num_buckets,
        parts_before=run.parts_before,
        parts_after=run.parts_after,
        bytes_before=run.bytes_before,
        bytes_after=run.bytes_after,
        num_rows=run.num_rows,
        postponed=tuple(run.postponed),
        seconds=time.monotonic() - started,
        peak_bytes=peak_memory(),
    )


class _Run:
    """One compaction, table by table."""

    def __init__(
        self, root: Path, num_buckets: int, budget: Budget, progress: Callable[[Progress], None] | None
    ) -> None:
        self.num_buckets = num_buckets
        self.parts_before = self.parts_after = self.bytes_before = self.bytes_after = self.num_rows = 0
        self.postponed: list[str] = []
        self._root = root
        self._budget = budget
        self._progress = progress
        self._keys: RequestKeys | None = None

    def compact(self, table: str, patience_seconds: float) -> None:
        if not finish_pending(self._root, table, patience_seconds):
            self.postponed.append(table)
            return
        sources = Sources.of(self._root, table)
        self.parts_before += len(sources.files)
        self.bytes_before += sources.num_bytes
        if sources.is_compacted(self.num_buckets):
            self.parts_after += len(sources.files)
            self.bytes_after += sources.num_bytes
            return
        counter = Counter(table, 2 * sources.total_rows, self._progress)
        counter.add(0)
        written = (
            new_parts(
                self._root, sources, self._request_keys(), self.num_buckets.bit_length() - 1, self._budget, counter
            )
            if is_bucketed(table)
            else joined_part(self._root, sources, counter)
        )
        self.num_rows += sources.total_rows
        self.parts_after += len(written)
        self.bytes_after += sum(path.stat().st_size for path in written.values())
        new = {segment: path.name for segment, path in written.items()}
        Intent(table, new, frozenset(sources.files)).commit(self._root)
        if not finish_pending(self._root, table, patience_seconds):
            self.postponed.append(table)
        pa.default_memory_pool().release_unused()

    def _request_keys(self) -> RequestKeys:
        if self._keys is None:
            requests = Trace(self._root).snapshot("requests")
            try:
                self._keys = RequestKeys(requests)
            finally:
                # Or it would wait for itself.
                requests.hold.release()
        return self._keys


def _budget(root: Path, limits: Limits) -> Budget:
    threads = limits.threads or min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    return Budget(limits.memory_bytes or _MEMORY_BYTES, threads, limits.temp_dir or root)


@contextlib.contextmanager
def _at_work(root: Path) -> Iterator[None]:
    had_journals = (root / JOURNAL).is_dir()
    try:
        lease = Lease(lease_path(root, COMPACTOR), "")
    except InputError as error:
        raise InputError(f"{root} is being compacted by another process; wait for it") from error
    except OSError as error:
        raise _unwritable(root, error) from error
    try:
        yield
    except OSError as error:
        raise _unwritable(root, error) from error
    finally:
        lease.release()
        if not had_journals:
            _remove_empty(root / JOURNAL)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # in use by a writer, or gone already
        for table in folder.iterdir():
            table.rmdir()
        folder.rmdir()


def _unwritable(root: Path, error: OSError) -> InputError:
    return InputError(
        f"{root} cannot be compacted: {error.strerror or error} ({error.filename or 'while writing'}); "
        "nothing is lost: put that right and compact again"
    )
