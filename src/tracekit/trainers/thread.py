"""The thread that writes a trainer's trace, so that the training loop does not."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from tracekit.errors import InputError, TracekitError
from tracekit.store import TraceWriter
from tracekit.trainers.batch import Batch, Part, Row, match
from tracekit.trainers.passes import Pass, new_run_id, runs_row
from tracekit.trainers.source import Key, Source

# How often requests that the source lacks are looked for again.
_LOOK_SECONDS = 0.5
_WAKE_SECONDS = 0.25


@dataclass
class _Mark:
    """Handed in to hear when all before it is written; `end` also ends the thread."""

    end: bool = False
    reached: threading.Event = field(default_factory=threading.Event)


class WriterThread:
    """Owns a `TraceWriter`; takes batches through a bounded queue.

    Args:
        writer: of the new trace.
        source: the rollout.
        known: columns of `runs` that the caller knows.
        more: what else goes into `options` there.
        num_queued: batches that may wait; then `put` waits too.
        skip_unknown: leave out requests that the source does not hold, and count them.
    """

    def __init__(
        self,
        writer: TraceWriter,
        source: Source,
        *,
        known: Mapping[str, Any],
        more: Mapping[str, Any],
        num_queued: int,
        skip_unknown: bool,
    ) -> None:
        self._writer = writer
        self._source = source
        self._known = known
        self._more = more
        self._skip_unknown = skip_unknown
        self._queue: queue.Queue[Batch | _Mark] = queue.Queue(num_queued)
        self._runs: dict[tuple[Pass, str], str] = {}
        self._waiting: list[Batch] = []
        self._looked = time.monotonic()
        self._failures: queue.SimpleQueue[TracekitError] = queue.SimpleQueue()
        self.num_tokens = 0
        self.num_skipped = 0
        self._thread = threading.Thread(target=self._run, name="tracekit-trainer", daemon=True)
        self._thread.start()

    def put(self, batch: Batch) -> None:
        """Hands a batch over; waits where as many as may be are waiting."""
        self._queue.put(batch)

    def wait(self, *, end: bool) -> None:
        """Waits until all that was handed in is journalled; with `end`, until it is in parts and the writer closed."""
        mark = _Mark(end)
        self._queue.put(mark)
        while not mark.reached.wait(_WAKE_SECONDS):
            if not self._thread.is_alive():
                break

    def raise_failure(self) -> None:
        """Raises the first failure since the last time.

        Raises:
            InputError: rows could not be written, or do not fit the source.
        """
        failures = []
        while not self._failures.empty():
            failures.append(self._failures.get())
        if failures:
            more = f" (and {len(failures) - 1} more like it)" if len(failures) > 1 else ""
            raise type(failures[0])(f"{failures[0]}{more}") from failures[0]

    def _run(self) -> None:
        while True:
            try:
                taken = self._queue.get(timeout=_WAKE_SECONDS)
            except queue.Empty:
                taken = None
            with self._noting():
                if isinstance(taken, Batch):
                    self._take(taken)
                self._look_again(patient=True)
                self._writer.flush_if_due()
            if isinstance(taken, _Mark):
                with self._noting():
                    self._reach(taken)
                taken.reached.set()
                if taken.end:
                    return

    def _reach(self, mark: _Mark) -> None:
        if not mark.end:
            self._writer.flush()
            return
        try:
            while self._waiting:
                # Of a rollout that has ended, nothing more will come.
                self._look_again(patient=self._source.is_recorded)
                if self._waiting:
                    time.sleep(_WAKE_SECONDS)
        finally:
            self._writer.close()

    def _noting(self) -> _Noting:
        return _Noting(self._failures)

    def _take(self, batch: Batch) -> None:
        rest = self._write(batch)
        if rest:
            # What was recorded just now is not known yet.
            self._refresh()
            batch.rows = rest
            batch.rows = self._write(batch)
            if batch.rows:
                self._waiting.append(batch)

    def _look_again(self, *, patient: bool) -> None:
        if not self._waiting or time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._refresh()
        waiting, self._waiting = self._waiting, []
        for batch in waiting:
            with self._noting():
                batch.rows = self._write(batch)
                if batch.rows and (time.monotonic() < batch.deadline and patient):
                    self._waiting.append(batch)
                elif batch.rows:
                    self._give_up(batch)

    def _refresh(self) -> None:
        self._source.refresh()
        self._looked = time.monotonic()

    def _give_up(self, batch: Batch) -> None:
        self.num_skipped += len(batch.rows)
        if self._skip_unknown and all(self._source.find(name) is None for row in batch.rows for name in row.names):
            return
        first = batch.rows[0]
        missing = [name for name in first.names if self._source.find(name) is None]
        if missing:
            raise InputError(
                f"request '{missing[0]}' is not in the source ({len(batch.rows)} such row(s) of a call); "
                "give ids of the rollout, or unknown='skip' where it recorded a share of them"
            )
        raise InputError(
            f"request '{first.names[0]}': {first.count} logprobs found, but the source holds fewer or more tokens and "
            "no end of it; log requests that have ended, or recover the source"
        )

    def _write(self, batch: Batch) -> list[Row]:
        """Writes the rows whose requests the source holds; returns the others."""
        found: dict[str, list[Part]] = {}
        rest = []
        for row in batch.rows:
            with self._noting():
                parts = match(row, self._source, batch.covers)
                if parts is None:
                    rest.append(row)
                for part in parts or ():
                    found.setdefault(part.request.key[0], []).append(part)
        for source_run_id, parts in found.items():
            self._append(batch, self._run_id(batch.of, source_run_id), parts)
        return rest

    def _append(self, batch: Batch, run_id: str, parts: Sequence[Part]) -> None:
        keys = [part.request.key for part in parts]
        for table, rows in (
            ("requests", self._source.request_rows(keys)),
            ("outcomes", self._source.outcome_rows(keys)),
        ):
            if rows.num_rows:
                self._writer.append(table, {name: rows.column(name) for name in rows.column_names} | {"run_id": run_id})
        take = np.concatenate([part.take for part in parts])
        if not len(take):
            return
        numbers = {
            name: np.concatenate([getattr(part.request, name)[part.tokens] for part in parts])
            for name in ("output_index", "position", "token_id")
        }
        self._writer.append(
            "tokens",
            {
                **batch.of.columns,
                **{name: values[take] for name, values in batch.columns.items()},
                **numbers,
                "run_id": run_id,
                "request_id": _repeated(keys, [len(part.take) for part in parts]),
                "forced": True,
                "is_prompt": False,
            },
        )
        self.num_tokens += len(take)

    def _run_id(self, of: Pass, source_run_id: str) -> str:
        key = (of, source_run_id)
        if key not in self._runs:
            run_id = new_run_id()
            row = runs_row(
                of,
                run_id=run_id,
                writer=self._writer.writer,
                source_run_id=source_run_id,
                known=self._known,
                more=self._more,
            )
            self._writer.append("runs", row)
            self._runs[key] = run_id
        return self._runs[key]


class _Noting:
    """Keeps failures for the training loop: the thread goes on."""

    def __init__(self, failures: queue.SimpleQueue[TracekitError]) -> None:
        self._failures = failures

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, TracekitError):
            self._failures.put(error)
        elif isinstance(error, Exception):
            self._failures.put(InputError(f"a trainer's rows could not be written: {type(error).__name__}: {error}"))
        return isinstance(error, Exception)


def _repeated(keys: Sequence[Key], counts: Sequence[int]) -> pa.Array:
    codes = np.repeat(np.arange(len(keys), dtype=np.int32), counts)
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array([name for _, name in keys])).cast(pa.string())


def rows_of(request_ids: Sequence[Any], counts: Sequence[int]) -> Iterator[Row]:
    """Yields the rows of a call; an id that is a list names the turns of one conversation."""
    start = 0
    for given, count in zip(request_ids, counts, strict=True):
        yield Row(tuple(given) if isinstance(given, list) else (given,), start, count)
        start += count
