"""Tells on standard error, where that is a terminal, how far a long query is."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# Shorter ones are not worth a line.
_SHOW_AFTER_SECONDS = 2.0


class QueryProgress:
    """A line that appears when something takes long, and goes when it has ended."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._bar: tuple[Progress, TaskID] | None = None
        self.show = self._show if sys.stderr.isatty() else None
        """What to hand to `connect` as `progress`; None where nobody would see it."""
        self.tell = self._tell if sys.stderr.isatty() else None
        """What is to be told what is being done, where that takes long; None where nobody would see it."""

    def __enter__(self) -> QueryProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def _show(self, per_cent: float) -> None:
        if self._bar is None and time.monotonic() - self._started < _SHOW_AFTER_SECONDS:
            return
        bar, task = self._bar = self._bar or _new_bar()
        bar.update(task, completed=max(per_cent, 0.0), total=100.0 if per_cent >= 0 else None)

    def _tell(self, text: str) -> None:
        self._show(-1)
        if self._bar is not None:
            self._bar[0].update(self._bar[1], description=text)


def _new_bar() -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.start()
    return bar, bar.add_task("computing", total=None)
