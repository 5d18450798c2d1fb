"""How far a replay is: a bar on standard error, where that is a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracekit.replay import Progress


class ReplayBar:
    """A bar on standard error, where that is a terminal; it moves with input tokens, the rate counts scored ones."""

    def __init__(self, prefix: str = "") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._prefix = prefix
        self._task = self._bar.add_task(f"{prefix}loading", total=None, rate="")

    def start(self) -> None:
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def __enter__(self) -> ReplayBar:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def show(self, progress: Progress) -> None:
        if progress.num_tokens == progress.num_resumed_tokens:
            self._bar.reset(self._task)  # Loading the model counts neither for the rate nor for the time left.
        elapsed = self._bar.tasks[0].elapsed or 0.0
        num_new = progress.num_tokens - progress.num_resumed_tokens
        rate = f"{num_new / elapsed:,.0f} tokens/s" if num_new and elapsed else ""
        self._bar.update(
            self._task,
            description=f"{self._prefix}{progress.num_sequences}/{progress.total_sequences} requests",
            total=progress.total_input_tokens,
            completed=progress.num_input_tokens,
            rate=rate,
        )
