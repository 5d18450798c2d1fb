"""How far a compaction is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a compaction is.

    Attributes:
        table: the table at work.
        num_rows: rows dealt with; each is read once and written once, so they count to twice the table's rows.
        total_rows: what `num_rows` counts to.
    """

    table: str
    num_rows: int
    total_rows: int


class Counter:
    """Counts the rows of one table for a caller; threads may add side by side."""

    def __init__(self, table: str, total_rows: int, tell: Callable[[Progress], None] | None) -> None:
        self._table = table
        self._total_rows = total_rows
        self._tell = tell
        self._num_rows = 0
        self._lock = threading.Lock()

    def add(self, num_rows: int) -> None:
        with self._lock:
            self._num_rows += num_rows
            if self._tell is not None:
                self._tell(Progress(self._table, self._num_rows, self._total_rows))
