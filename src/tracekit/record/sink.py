"""Where the recorder's thread puts rows: gathered between flushes, then appended to the trace."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tracekit.errors import InputError, TracekitError
from tracekit.record.buffer import BatchBuffer, RowBuffer
from tracekit.record.capture import (
    BatchOf,
    Item,
    LateCapture,
    LostTokens,
    RequestGone,
    RequestSeen,
    RowsOf,
    TokenCapture,
)
from tracekit.record.config import RecordConfig
from tracekit.record.forced import forced_of
from tracekit.record.joining import can_join, num_logits_rows
from tracekit.record.rows import Batch, TokenReducer
from tracekit.record.selection import Selection
from tracekit.store import TraceWriter

logger = logging.getLogger("tracekit")

# So many rows of logits are gathered, and kept alive, before they are reduced.
_MOST_ROWS = 32


class Sink:
    """Owns the trace writer of one recorder; used by the recorder's thread alone.

    Leaving the context closes the writer, also after a failure: what was captured before it is kept where the
    disk allows it.

    Args:
        config: the recorder's settings.
        run_id, process: as in `runs`.
        failed: returns what is to be told of a capture that could not be worked out, and why.
    """

    def __init__(
        self,
        config: RecordConfig,
        run_id: str,
        process: str,
        failed: Callable[[TokenCapture, Exception], list[RowsOf]],
    ) -> None:
        self._failed = failed
        self._gathered: list[TokenCapture] = []
        self.writer_name = f"{process.replace('_', '-')}-{os.getpid()}-{os.urandom(3).hex()}"
        self._writer = TraceWriter(
            config.trace,
            run_id=run_id,
            writer=self.writer_name,
            part_bytes=config.part_mib << 20,
            flush_seconds=config.flush_seconds,
        )
        self._reducer = TokenReducer(config)
        self._selection = Selection(config)
        self._not_recorded: set[str] = set()
        self._batches = BatchBuffer()
        self._rows = RowBuffer()
        self._interval = config.flush_seconds
        self._last_flush = time.monotonic()
        self._num_lost = 0
        self._closed = False

    def take(self, item: Item) -> None:
        """Works out the rows of a capture, or keeps it for a while, to be joined with those of the next steps."""
        if isinstance(item, LateCapture):
            item = item.worked_out()
        if isinstance(item, TokenCapture):
            self._gather_capture(item)
        elif isinstance(item, BatchOf):
            self._batches.add(item.table, dict(item.columns()))
        elif isinstance(item, LostTokens):
            self._num_lost += item.count_tokens()
        elif isinstance(item, RequestGone):
            self._reduce_gathered()
            self._reducer.drop_request(item.request_id)
            self._not_recorded.discard(item.request_id)
        else:
            self._take_row(item)

    def _gather_capture(self, capture: TokenCapture) -> None:
        if not capture.num_rows:
            return  # the middle of prompts
        # Rows of the logits and not of tokens: they are what is kept alive.
        most, own = min(_MOST_ROWS, self._reducer.slice_rows(capture)), num_logits_rows(capture)
        before = sum(map(num_logits_rows, self._gathered))
        if self._gathered and (before + own > most or not can_join(self._gathered[-1], capture)):
            self._reduce_gathered()
            before = 0
        self._gathered.append(capture)
        if before + own >= most or not can_join(capture, capture):
            self._reduce_gathered()

    def _reduce_gathered(self) -> None:
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return
        try:
            batches = self._reducer.reduce(*gathered)
        except Exception as error:  # noqa: BLE001 - one of them must not take the others with it: it is told of alone
            logger.debug("tracekit: %d captures are reduced one by one: %r", len(gathered), error)
            batches = [batch for capture in gathered for batch in self._reduced_alone(capture)]
        for table, columns in batches:
            self._batches.add(table, columns)

    def _reduced_alone(self, capture: TokenCapture) -> list[Batch]:
        try:
            return self._reducer.reduce(capture)
        except (OSError, InputError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the engine must not notice
            for event in self._failed(capture, error):
                self.take(event)
            return []

    def _take_row(self, item: RowsOf) -> None:
        row = item.columns()
        if isinstance(item, RequestSeen):
            choice = self._selection.choose(item.extra_args, lambda: row)
            self._reducer.add_request(row, item.output_token_ids, choice, forced_of(item.extra_args))
            if not choice.record:
                self._not_recorded.add(row["request_id"])
        if item.table not in ("requests", "outcomes") or row["request_id"] not in self._not_recorded:
            self._rows.add(item.table, row)

    @property
    def num_dropped(self) -> int:
        """Tokens so far that are missing: for want of room in the queue, or because a hook failed."""
        return self._reducer.num_dropped + self._num_lost

    def is_due(self) -> bool:
        return time.monotonic() - self._last_flush >= self._interval

    def flush(self) -> None:
        """Puts what has gathered into the journal."""
        self._last_flush = time.monotonic()
        self._reduce_gathered()
        self._gather()
        self._writer.flush()

    def _gather(self) -> None:
        """Hands everything over to the writer, which keeps it even where it then fails to journal it."""
        failure: TracekitError | None = None
        for table, columns in [*self._rows.drain(), *self._batches.drain()]:
            try:
                self._writer.append(table, columns)
            except TracekitError as error:
                failure = error
        if failure is not None:
            raise failure

    def seal(self) -> None:
        """Puts everything into parts."""
        self.flush()
        self._writer.seal()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.flush()
            self._writer.close()

    def close_after_failure(self, events: Callable[[int], list[RowsOf]]) -> int:
        """Tries once more to write everything, then the events that tell of what could not be.

        Args:
            events: given the number of tokens that stand neither in a part nor in the journal.

        Returns:
            That number.

        Raises:
            TracekitError: not even the events could be written.
        """
        with contextlib.suppress(TracekitError):
            self.seal()
        unsaved = self._writer.num_unsaved("tokens")
        for event in events(unsaved):
            self.take(event)
        with contextlib.suppress(TracekitError):
            self.close()
        if self._writer.num_unsaved("events"):
            raise InputError("the trace cannot tell so itself")
        return unsaved

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(Exception):
            self.close()
