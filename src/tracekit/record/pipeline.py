"""The recorder of one process and one engine run: a bounded queue, and the thread that writes.

Hooks only put; everything that costs time happens on the thread. Nothing that fails here reaches the engine:
a failure of the writer disables the recorder, loudly, once.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tracekit.errors import InputError, RecorderError
from tracekit.record.capture import Captured, Columns, Item, LostTokens, RowsOf, known_row
from tracekit.record.config import RecordConfig
from tracekit.record.control import stop_requested
from tracekit.record.sink import Sink
from tracekit.record.thread import cpu_milliseconds, hurry, settle_thread
from tracekit.version import __version__

logger = logging.getLogger("tracekit")

_IDLE_SECONDS = 0.25
_MAX_ERRORS = 8
# How many times as long as it may stand still a writer that comes on is waited for.
_MOST_PATIENCE = 10
# Captures without tensors are small, but a writer that stands still must not gather them without end.
_MAX_ITEMS = 1 << 16


@dataclass(frozen=True)
class _Barrier:
    """Asks the thread to seal what it has, and to end where `last` is set."""

    done: threading.Event
    last: bool


class Recorder:
    """Takes captures from hooks and writes them to the trace as one writer.

    A recorder that fails, or has failed too often, is disabled: it records nothing more, but still counts the
    tokens that pass, so that the trace can say how many are missing.

    Args:
        config: the recorder's settings.
        run_id: the engine run these rows belong to.
        process: 'front_end', 'worker', 'engine_core' or 'all'.
        describe: returns the engine's columns of the `runs` row; called on the recorder's thread.

    Attributes:
        enabled: whether captures are still recorded.
        hook_ns: time spent inside hooks.
        step_ns: time of the steps with sampling, from before the forward pass to after sampling.
        num_steps: how many these are.
        wants_hidden: whether hidden states are kept, of all requests or of one that asked for it.
    """

    def __init__(self, config: RecordConfig, run_id: str, process: str, describe: Callable[[], Columns]) -> None:
        self.config = config
        self.run_id = run_id
        self.process = process
        self.enabled = True
        self.wants_hidden = config.hidden
        self.hook_ns = 0
        self.step_ns = 0
        self.num_steps = 0
        self._describe = describe
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._held: collections.deque[Item] = collections.deque()
        self._held_lock = threading.Lock()
        self._at_end: list[Callable[[], list[RowsOf]]] = []
        self._max_bytes = config.max_queue_mib << 20
        self._bytes_put = 0
        self._bytes_taken = 0
        self._num_taken = 0
        self._num_dropped = 0
        self._num_dropped_told = 0
        self._started_ns = time.time_ns()
        self._num_errors = 0
        self._failure: Exception | None = None
        self._ended = False
        self._last: _Barrier | None = None
        self._thread = threading.Thread(target=self._run, name="tracekit-recorder", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hands over a capture; never blocks. Rows that find the queue full are dropped and counted.

        Raises:
            RecorderError: the writer failed, and the settings are strict.
        """
        if self._ended:
            return
        if self.config.strict and self._failure is not None:
            raise RecorderError(f"the writer failed: {self._failure}") from self._failure
        is_token = isinstance(item, Captured | LostTokens)
        if not self.enabled and not is_token:
            return
        if self._queue.qsize() >= _MAX_ITEMS:
            self._num_dropped += item.num_rows if isinstance(item, Captured | LostTokens) else 1
            return
        if isinstance(item, Captured):
            size = item.num_bytes
            if not self.enabled or (size and self._bytes_put - self._bytes_taken + size > self._max_bytes):
                # How many of them become tokens is known, and counted, on the thread.
                item = item.without_figures()
            else:
                self._bytes_put += size
        self._queue.put(item)

    def put_later(self, *items: Item) -> None:
        """Hands over what belongs to one step, to be worked on from the next `release` on.

        Right after sampling the scheduler and the front end want the spare core, and the engine waits for them;
        during the next forward pass nobody does.
        """
        with self._held_lock:
            self._held.extend(items)

    def release(self) -> None:
        """Lets the writer have what `put_later` held back; the writer does so itself where the engine idles."""
        with self._held_lock:
            while self._held:
                self.put(self._held.popleft())

    def event(self, kind: str, *, request_id: str | None = None, step_id: int | None = None, **attributes: Any) -> None:
        """Records something that happened now."""
        self.put(event_row(kind, request_id, step_id, attributes))

    def failed(self, where: str, error: Exception) -> None:
        """Takes note that a hook failed; after a few times the recorder switches itself off."""
        for event in self._failure_events(where, error):
            self.put(event)
        if self._num_errors >= _MAX_ERRORS:
            self.enabled = False

    def _failure_events(self, where: str, error: Exception) -> list[RowsOf]:
        if self.config.strict:
            raise RecorderError(f"recorder failed in {where}: {error}") from error
        self._num_errors += 1
        if self._num_errors > _MAX_ERRORS:
            return []
        if self._num_errors == 1:
            logger.warning("tracekit: recorder failed in %s, the engine goes on: %r", where, error, exc_info=True)
        events = [event_row("recorder_error", None, None, {"where": where, "error": repr(error)})]
        if self._num_errors == _MAX_ERRORS:
            reason = f"{self._num_errors} failures, the last in {where}: {error!r}"
            logger.error("tracekit: recorder disabled, the engine goes on: %s", reason)
            events.append(event_row("recorder_disabled", None, None, {"reason": reason}))
        return events

    def at_end(self, rows: Callable[[], list[RowsOf]]) -> None:
        """Registers what returns rows that are known only when the recording ends."""
        self._at_end.append(rows)

    def seal(self, timeout: float = 3.0) -> None:
        """Waits until everything handed over so far stands in Parquet parts.

        Args:
            timeout: how long the writer may take without coming on; ten times that in all.
        """
        self._wait(last=False, timeout=timeout)

    def close(self, timeout: float = 3.0) -> None:
        """Writes what is left and ends the thread; may be called more than once. The timeout is that of `seal`."""
        self._wait(last=True, timeout=timeout)
        self.enabled = False
        self._ended = True
        # A thread that is still on its way out when the interpreter goes down can take the process with it.
        self._thread.join(timeout=1.0)

    def _wait(self, *, last: bool, timeout: float) -> None:
        if not self._thread.is_alive():
            return
        self.release()
        if last:
            hurry(self._thread)
            self._put_what_is_left()
        barrier = _Barrier(threading.Event(), last)
        self._queue.put(barrier)
        started, done = time.monotonic(), self._work_done()
        # On a busy machine the thread gets little, for its priority is low: while it comes on, it is waited for.
        while not barrier.done.wait(timeout):
            waited, before, done = time.monotonic() - started, done, self._work_done()
            if done == before or waited > _MOST_PATIENCE * timeout:
                logger.warning(
                    "tracekit: the writer did not finish in %.0f s; `tracekit recover` completes the trace", waited
                )
                return

    def _work_done(self) -> tuple[int, int]:
        """Returns what changes while the thread comes on: items that it took, and milliseconds that it computed."""
        return self._num_taken, cpu_milliseconds(self._thread)

    def _put_what_is_left(self) -> None:
        while self._at_end:
            rows = self._at_end.pop()
            try:
                for row in rows():
                    self.put(row)
            except Exception as error:  # noqa: BLE001 - a recording ends, whatever is missing from it
                logger.warning("tracekit: the last events are missing: %r", error)

    # --- on the recorder's thread ---

    def _run(self) -> None:
        try:
            settle_thread()
            with torch.inference_mode(), Sink(self.config, self.run_id, self.process, self._capture_failed) as sink:
                try:
                    self._introduce(sink)
                    self._serve(sink)
                except Exception as error:  # noqa: BLE001 - whatever it is, the engine must not notice
                    self._disable(error)
                    if self._last is not None:
                        # It failed at the very end: nothing more will come.
                        self._queue.put(self._last)
                    self._serve_the_count(sink)
        except Exception as error:  # noqa: BLE001 - here nothing can be written at all
            self._disable(error)
        finally:
            self._ended = True
            self._release_waiters()

    def _disable(self, error: Exception) -> None:
        self.enabled = False
        if self._failure is None:
            self._failure = error
            logger.error("tracekit: recorder disabled, the engine goes on: %s: %s", type(error).__name__, error)
            logger.debug("tracekit: the writer failed", exc_info=True)

    def _items(self) -> Iterator[Any]:
        """Yields what hooks put, and None in between, until the end is asked for: by a barrier or the stop file."""
        next_look = time.monotonic() + _IDLE_SECONDS
        stopping = False
        while True:
            item = None
            try:
                item = self._queue.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                self.release()
            yield item
            self._num_taken += item is not None
            if isinstance(item, _Barrier):
                item.done.set()
                if item.last:
                    return
            if time.monotonic() > next_look:
                next_look = time.monotonic() + _IDLE_SECONDS
                if not stopping and stop_requested(Path(self.config.trace), self.config.session):
                    stopping = True
                    # The step that is held back came before the stop: it goes ahead of the barrier.
                    self.release()
                    self._put_what_is_left()
                    self.enabled = False
                    self._ended = True
                    self._queue.put(_Barrier(threading.Event(), last=True))

    def _serve(self, sink: Sink) -> None:
        """Writes what hooks put."""
        for item in self._items():
            if isinstance(item, _Barrier):
                self._note_drops(sink)
                if item.last:
                    self._last = item
                    sink.take(event_row("writer_closed", None, None, self._overhead()))
                    sink.close()
                else:
                    sink.seal()
            elif item is not None:
                self._take(sink, item)
            item = None  # lets go of its tensors
            if sink.is_due():
                self._note_drops(sink)
                sink.flush()

    def _serve_the_count(self, sink: Sink) -> None:
        """After a failure: counts the tokens that pass, and tells how many are missing if the disk allows."""
        num_missing = 0
        for item in self._items():
            if isinstance(item, Captured | LostTokens):
                num_missing += item.count_tokens()
            if isinstance(item, _Barrier) and item.last:
                num_missing += self._num_dropped + sink.num_dropped - self._num_dropped_told
                self._tell_the_count(sink, num_missing)

    def _tell_the_count(self, sink: Sink, num_missing: int) -> None:
        reason = f"{type(self._failure).__name__}: {self._failure}"

        def events(num_unsaved: int) -> list[RowsOf]:
            lost = {"num_rows": num_missing + num_unsaved, "table": "tokens"}
            disabled = event_row("recorder_disabled", None, None, {"reason": reason})
            return [disabled, event_row("rows_dropped", None, None, lost)]

        num_missing += sink.close_after_failure(events)
        logger.error("tracekit: %d tokens are missing in %s", num_missing, self.config.trace)

    def _take(self, sink: Sink, item: Item) -> None:
        size = item.num_bytes if isinstance(item, Captured) else 0
        try:
            sink.take(item)
        except (OSError, InputError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the engine must not notice
            # One capture that cannot be worked out must not end the recording.
            for event in self._capture_failed(item, error):
                sink.take(event)
        finally:
            self._bytes_taken += size

    def _capture_failed(self, item: Item, error: Exception) -> list[RowsOf]:
        events = self._failure_events("the writer's thread", error)
        if isinstance(item, Captured):
            lost = {"num_rows": item.count_tokens(), "table": "tokens"}
            events.append(event_row("rows_dropped", None, item.step_id, lost))
        if self._num_errors >= _MAX_ERRORS:
            self.enabled = False
        return events

    def _introduce(self, sink: Sink) -> None:
        """Writes the row of `runs`; a description that fails costs its columns, not the recording."""
        try:
            described = self._describe()
        except Exception as error:  # noqa: BLE001 - whatever it is, the engine must not notice
            described = {}
            for event in self._failure_events("the description of the run", error):
                sink.take(event)
        sink.take(known_row("runs", self._run_columns(sink.writer_name) | dict(described)))

    def _run_columns(self, writer_name: str) -> dict[str, Any]:
        return {
            "role": "record",
            "writer": writer_name,
            "process": self.process,
            "process_id": os.getpid(),
            "hostname": socket.gethostname(),
            "started_ns": self._started_ns,
            "tracekit_version": __version__,
            "capture_config": json.dumps(asdict(self.config)),
        }

    def _overhead(self) -> dict[str, int]:
        return {"num_steps": self.num_steps, "hook_ns": self.hook_ns, "step_ns": self.step_ns}

    def _note_drops(self, sink: Sink) -> None:
        # Only the hooks' side counts up, only this side keeps what was told: no drop is lost between the two.
        dropped = self._num_dropped + sink.num_dropped - self._num_dropped_told
        if dropped:
            self._num_dropped_told += dropped
            limit = self.config.max_queue_mib
            logger.warning("tracekit: %d rows dropped, the queue of %d MiB was full", dropped, limit)
            sink.take(event_row("rows_dropped", None, None, {"num_rows": dropped, "table": "tokens"}))

    def _release_waiters(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                if isinstance(item, _Barrier):
                    item.done.set()


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
