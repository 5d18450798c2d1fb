"""The recorder of one process and one engine run: a bounded queue, and the thread that writes.

Hooks only put; everything that costs time happens on the thread. Nothing that fails here reaches the engine:
a failure of the writer disables the recorder, loudly, once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tracekit.errors import RecorderError
from tracekit.record.buffer import RowBuffer, TokenBuffer
from tracekit.record.capture import Columns, RequestGone, RequestSeen, RowsOf, StepCapture, known_row
from tracekit.record.config import RecordConfig
from tracekit.record.control import stop_requested
from tracekit.record.rows import StepReducer
from tracekit.store import TraceWriter
from tracekit.version import __version__

logger = logging.getLogger("tracekit")

_IDLE_SECONDS = 0.25
_MAX_ERRORS = 8


@dataclass(frozen=True)
class _Barrier:
    """Asks the thread to seal what it has, and to end where `last` is set."""

    done: threading.Event
    last: bool


class Recorder:
    """Takes captures from hooks and writes them to the trace as one writer.

    Args:
        config: the recorder's settings.
        run_id: the engine run these rows belong to.
        process: 'front_end', 'worker' or 'all'.
        describe: returns the engine's columns of the `runs` row; called on the recorder's thread.
    """

    def __init__(self, config: RecordConfig, run_id: str, process: str, describe: Callable[[], Columns]) -> None:
        self.config = config
        self.run_id = run_id
        self.process = process
        self.enabled = True
        self.hook_ns = 0
        self.step_ns = 0
        self.num_steps = 0
        self._describe = describe
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._max_bytes = config.max_queue_mib << 20
        self._bytes_put = 0
        self._bytes_taken = 0
        self._dropped_rows = 0
        self._num_errors = 0
        self._thread = threading.Thread(target=self._run, name="tracekit-recorder", daemon=True)
        self._thread.start()

    def put(self, item: RowsOf | RequestGone | StepCapture) -> None:
        """Hands over a capture; never blocks. Rows that find the queue full are dropped and counted."""
        if not self.enabled:
            return
        if isinstance(item, StepCapture):
            size = item.num_bytes
            if size and self._bytes_put - self._bytes_taken + size > self._max_bytes:
                self._dropped_rows += len(item.request_ids)
                item = replace(item, raw_BV=None, masked_BV=None, processed_BV=None, reported_B=None)
            else:
                self._bytes_put += size
        self._queue.put(item)

    def event(self, kind: str, *, request_id: str | None = None, step_id: int | None = None, **attributes: Any) -> None:
        """Records something that happened now."""
        self.put(event_row(kind, request_id, step_id, attributes))

    def failed(self, where: str, error: Exception) -> None:
        """Takes note that a hook failed; after a few times the recorder switches itself off."""
        if self.config.strict:
            raise RecorderError(f"recorder failed in {where}: {error}") from error
        self._num_errors += 1
        if self._num_errors == 1:
            logger.warning("tracekit: recorder failed in %s, the engine goes on: %r", where, error, exc_info=True)
        self.event("recorder_error", where=where, error=repr(error))
        if self._num_errors >= _MAX_ERRORS:
            logger.error("tracekit: recorder disabled after %d failures, the last in %s", self._num_errors, where)
            self.event("recorder_disabled", reason=f"{self._num_errors} failures, the last in {where}: {error!r}")
            self.enabled = False

    def seal(self, timeout: float = 3.0) -> None:
        """Waits until everything handed over so far stands in Parquet parts."""
        self._wait(last=False, timeout=timeout)

    def close(self, timeout: float = 3.0) -> None:
        """Writes what is left and ends the thread; may be called more than once."""
        self._wait(last=True, timeout=timeout)
        self.enabled = False

    def _wait(self, *, last: bool, timeout: float) -> None:
        if not self._thread.is_alive():
            return
        barrier = _Barrier(threading.Event(), last)
        self._queue.put(barrier)
        if not barrier.done.wait(timeout):
            logger.warning(
                "tracekit: the writer did not finish in %.0f s; `tracekit recover` completes the trace", timeout
            )

    # --- on the recorder's thread ---

    def _run(self) -> None:
        try:
            _settle_thread()
            with torch.inference_mode():
                self._write()
        except Exception as error:
            self.enabled = False
            logger.error("tracekit: recorder disabled, the engine goes on: %s: %s", type(error).__name__, error)
            if not isinstance(error, OSError):
                logger.debug("tracekit: writer failed", exc_info=True)
        finally:
            self._release_waiters()

    def _write(self) -> None:
        name = f"{self.process.replace('_', '-')}-{os.getpid()}-{os.urandom(3).hex()}"
        config = self.config
        writer = TraceWriter(
            config.trace,
            run_id=self.run_id,
            writer=name,
            part_bytes=config.part_mib << 20,
            flush_seconds=config.flush_seconds,
        )
        sink = _Sink(writer, StepReducer(config.top_k), config)
        writer.append("runs", self._run_columns(writer))
        writer.flush()
        stop_check = time.monotonic()
        try:
            while True:
                try:
                    item = self._queue.get(timeout=_IDLE_SECONDS)
                except queue.Empty:
                    item = None
                if isinstance(item, _Barrier):
                    self._note_drops(sink)
                    if item.last:
                        self._note_end(sink)
                        sink.flush()
                        writer.close()
                        item.done.set()
                        return
                    sink.flush()
                    writer.seal()
                    item.done.set()
                elif item is not None:
                    sink.take(item)
                    if isinstance(item, StepCapture):
                        self._bytes_taken += item.num_bytes
                        item = None
                if sink.flush_if_due():
                    self._note_drops(sink)
                if time.monotonic() - stop_check > _IDLE_SECONDS:
                    stop_check = time.monotonic()
                    if self.process == "worker" and stop_requested(Path(config.trace), config.session):
                        self.enabled = False
                        self._queue.put(_Barrier(threading.Event(), last=True))
        except BaseException:
            # What was captured before the failure is kept where the disk allows it.
            with contextlib.suppress(Exception):
                writer.close()
            raise

    def _run_columns(self, writer: TraceWriter) -> dict[str, Any]:
        return {
            "role": "record",
            "writer": writer.writer,
            "process": self.process,
            "process_id": os.getpid(),
            "hostname": socket.gethostname(),
            "started_ns": time.time_ns(),
            "tracekit_version": __version__,
            "capture_config": json.dumps(asdict(self.config)),
            **self._describe(),
        }

    def _note_drops(self, sink: _Sink) -> None:
        dropped, self._dropped_rows = self._dropped_rows, 0
        if dropped:
            logger.warning(
                "tracekit: %d rows dropped, the queue of %d MiB was full", dropped, self.config.max_queue_mib
            )
            sink.take(event_row("rows_dropped", None, None, {"num_rows": dropped, "table": "tokens"}))

    def _note_end(self, sink: _Sink) -> None:
        overhead = {"num_steps": self.num_steps, "hook_ns": self.hook_ns, "step_ns": self.step_ns}
        sink.take(event_row("writer_closed", None, None, overhead))

    def _release_waiters(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                if isinstance(item, _Barrier):
                    item.done.set()


class _Sink:
    """Where the thread's rows gather between two flushes."""

    def __init__(self, writer: TraceWriter, reducer: StepReducer, config: RecordConfig) -> None:
        self._writer = writer
        self._reducer = reducer
        self._interval = config.flush_seconds
        self._last = time.monotonic()
        self._tokens = TokenBuffer()
        self._rows = RowBuffer()

    def take(self, item: RowsOf | RequestGone | StepCapture) -> None:
        if isinstance(item, StepCapture):
            self._rows.add("steps", item.step)
            self._tokens.add(self._reducer.reduce(item))
        elif isinstance(item, RequestGone):
            self._reducer.drop_request(item.request_id)
        else:
            row = item.columns()
            self._rows.add(item.table, row)
            if isinstance(item, RequestSeen):
                self._reducer.add_request(row, item.output_token_ids)

    def flush_if_due(self) -> bool:
        if time.monotonic() - self._last < self._interval:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        for table, columns in [*self._rows.drain(), *self._tokens.drain()]:
            self._writer.append(table, columns)
        self._writer.flush()
        self._last = time.monotonic()


def event_row(kind: str, request_id: str | None, step_id: int | None, attributes: Columns) -> RowsOf:
    """Returns a row of `events` stamped with the time of this call."""
    row = {
        "time_ns": time.time_ns(),
        "kind": kind,
        "request_id": request_id,
        "step_id": step_id,
        "attributes": json.dumps(dict(attributes)) if attributes else None,
    }
    return known_row("events", row)


def _settle_thread() -> None:
    """Moves this thread off the engine's cores, and keeps its arithmetic on one core.

    vLLM pins its compute threads on a CPU host, and threads inherit that: a recorder that kept it would take
    turns with the engine on one core.
    """
    cores = set(range(os.cpu_count() or 1))
    pinned: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            affinity = os.sched_getaffinity(int(task))
            if len(affinity) == 1 and int(task) != threading.get_native_id():
                pinned |= affinity
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, (cores - pinned) or cores)
    num_threads = torch.get_num_threads()
    if num_threads > 1:
        # OpenMP's setting is a thread's own, torch's default for threads to come is global: put that back.
        torch.set_num_threads(1)
        restorer = threading.Thread(target=torch.set_num_threads, args=(num_threads,))
        restorer.start()
        restorer.join()
