"""Lays tables out as plain text: in colours and as wide as the terminal on one, without either into a pipe."""

from __future__ import annotations

import io
import shutil
import sys

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table

# Into a pipe no line is broken, so that a value stays greppable.
_PIPE_WIDTH = 100_000


def new_table(title: str | None = None) -> Table:
    """Returns an empty table in the one style that all reports use."""
    return Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)


def to_bytes(*parts: RenderableType) -> bytes:
    """Renders parts one below the other for standard output, without blanks at line ends."""
    return render(*parts, width=shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


def render(*parts: RenderableType, width: int | None) -> bytes:
    """Renders parts one below the other, without blanks at line ends.

    Args:
        parts: what to render.
        width: columns of the terminal, which gets colours; None for anything else, which gets none, and no line is
            broken.
    """
    console = _console(width)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return ("\n".join(lines).strip("\n") + "\n").encode()


def natural_width(part: RenderableType) -> int:
    """Returns how many columns a part takes where nothing is folded."""
    console = _console(None)
    return Measurement.get(console, console.options, part).maximum


def _console(width: int | None) -> Console:
    terminal = width is not None
    return Console(
        file=io.StringIO(), width=width or _PIPE_WIDTH, force_terminal=terminal, highlight=False, markup=False
    )
