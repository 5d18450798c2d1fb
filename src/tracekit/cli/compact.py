"""`tracekit compact`: joins the small parts of a trace into few large ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tracekit.cli.limits import limit_options, limits_of

if TYPE_CHECKING:
    from tracekit.store.compaction import Compacted, Progress

_EPILOG = """\b
Example:
  tracekit compact run.trace
  tracekit compact run.trace --buckets 64 --memory-limit 1GB --temp-dir /scratch
"""


@click.command(name="compact", epilog=_EPILOG)
@click.argument("trace", type=click.Path(path_type=Path))
@click.option(
    "--buckets",
    type=int,
    help="Parts of each table: a power of two. By default one for each two million tokens, and no fewer than it has.",
)
@limit_options
def command(trace: Path, buckets: int | None, **options: Any) -> None:
    """Join the many small parts of TRACE into few, sorted by request and position.

    Rows stay as they are; tracekit sees each of them once at any moment. Requests with equal prompts get equal
    buckets, in every trace, so that two compacted traces can be compared bucket by bucket. Writers at work are left
    alone: what they seal later is for the next time. After a kill, the same command goes on or begins again.
    Takes up to 1 GiB of memory by default, and on the disk as much again as the largest table until that is done.
    """
    from tracekit.store.compaction import compact

    limits = limits_of(options)
    with _ProgressBar() as bar:
        done = compact(trace, num_buckets=buckets, limits=limits, progress=bar.show)
    click.echo(_summary(done), err=True)


def _summary(done: Compacted) -> str:
    if not done.num_rows:
        text = f"{done.path}: nothing to gain, {done.parts_before:,} parts, {_size(done.bytes_before)}"
    else:
        text = (
            f"{done.path}: {done.parts_before:,} parts into {done.parts_after:,} in {done.num_buckets:,} bucket(s), "
            f"{done.num_rows:,} rows, {_size(done.bytes_before)} to {_size(done.bytes_after)} in {done.seconds:.1f} s"
        )
    text += f", peak memory {done.peak_bytes / 2**30:.2f} GiB"
    if done.postponed:
        text += (
            f"; others still read the old parts of {', '.join(done.postponed)}: `tracekit recover {done.path}` removes "
            "them later"
        )
    return text


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 10**8 else f"{num_bytes / 1e6:.2f} MB"


class _ProgressBar:
    """A bar on standard error, where that is a terminal: one table after the other."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("compacting", total=None)

    def __enter__(self) -> _ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        self._bar.update(self._task, description=progress.table, completed=progress.num_rows, total=progress.total_rows)
