"""Lays tables out as plain text: in colours and as wide as the terminal on one, without either into a pipe."""

from __future__ import annotations

import io
import shutil
import sys

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

# Into a pipe no line is broken, so that a value stays greppable.
_PIPE_WIDTH = 100_000


def new_table(title: str | None = None) -> Table:
    """Returns an empty table in the one style that all reports use."""
    return Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)


def to_bytes(*parts: RenderableType) -> bytes:
    """Renders parts one below the other for standard output, without blanks at line ends."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else _PIPE_WIDTH
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, highlight=False, markup=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return ("\n".join(lines).strip("\n") + "\n").encode()
