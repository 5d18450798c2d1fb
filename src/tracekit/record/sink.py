"""Where the recorder's thread puts rows: gathered between flushes, then appended to the trace."""

from __future__ import annotations

import contextlib
import os
import time
from types import TracebackType
from typing import Self

from tracekit.record.buffer import BatchBuffer, RowBuffer
from tracekit.record.capture import Item, RequestGone, RequestSeen, TokenCapture
from tracekit.record.config import RecordConfig
from tracekit.record.rows import TokenReducer
from tracekit.store import TraceWriter


class Sink:
    """Owns the trace writer of one recorder; used by the recorder's thread alone.

    Leaving the context closes the writer, also after a failure: what was captured before it is kept where the
    disk allows it.
    """

    def __init__(self, config: RecordConfig, run_id: str, process: str) -> None:
        self.writer_name = f"{process.replace('_', '-')}-{os.getpid()}-{os.urandom(3).hex()}"
        self._writer = TraceWriter(
            config.trace,
            run_id=run_id,
            writer=self.writer_name,
            part_bytes=config.part_mib << 20,
            flush_seconds=config.flush_seconds,
        )
        self._reducer = TokenReducer(config)
        self._batches = BatchBuffer()
        self._rows = RowBuffer()
        self._interval = config.flush_seconds
        self._last_flush = time.monotonic()
        self._closed = False

    def take(self, item: Item) -> None:
        """Works out the rows of a capture."""
        if isinstance(item, TokenCapture):
            for table, columns in self._reducer.reduce(item):
                self._batches.add(table, columns)
        elif isinstance(item, RequestGone):
            self._reducer.drop_request(item.request_id)
        else:
            row = item.columns()
            self._rows.add(item.table, row)
            if isinstance(item, RequestSeen):
                self._reducer.add_request(row, item.output_token_ids)

    @property
    def num_dropped(self) -> int:
        """Tokens so far that came without figures, for want of room in the queue."""
        return self._reducer.num_dropped

    def is_due(self) -> bool:
        return time.monotonic() - self._last_flush >= self._interval

    def flush(self) -> None:
        """Puts what has gathered into the journal."""
        for table, columns in [*self._rows.drain(), *self._batches.drain()]:
            self._writer.append(table, columns)
        self._writer.flush()
        self._last_flush = time.monotonic()

    def seal(self) -> None:
        """Puts everything into parts."""
        self.flush()
        self._writer.seal()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.flush()
            self._writer.close()

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
