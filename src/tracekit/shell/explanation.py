"""What `.help` says: the library by module, or one view or macro."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tracekit.analysis.catalogue import Catalogue, Entry
from tracekit.report.console import new_table, render


def overview(catalogue: Catalogue, commands: Iterable[tuple[str, str]], terminal: bool) -> bytes:
    """Returns the commands, then views and macros with their comments, a table for each module.

    Args:
        catalogue: of the session.
        commands: the dot-commands, each with what it does.
        terminal: whether it is for a terminal: as wide as that, and in colours.
    """
    words = _table("commands", "", "")
    for command, text in commands:
        words.add_row(command, Text(text))
    words.show_header = False
    parts: list[RenderableType] = [
        words,
        Text("Anything else is SQL, ended by ';'. .help NAME explains a view or macro.\n"),
    ]
    for module, entries in catalogue.modules().items():
        table = _table(module, "", "")
        table.show_header = False
        for names, comment in _merged(entries):
            table.add_row(names, Text(comment))
        parts.append(table)
    return render(*parts, width=_width(terminal))


def explain(entry: Entry, terminal: bool) -> bytes:
    """Returns what one view or macro is, with the columns of a view."""
    signature = entry.path if entry.kind == "view" else f"{entry.path}({', '.join(entry.parameters)})"
    parts: list[RenderableType] = [Text(f"{entry.kind} {signature} (module {entry.module})", style="bold")]
    parts.append(Text(entry.comment + "\n"))
    if entry.columns:
        table = _table(None, "column", "type", "what it is")
        for column in entry.columns:
            table.add_row(column.name, column.type, Text(column.comment))
        parts.append(table)
    return render(*parts, width=_width(terminal))


def _merged(entries: Iterable[Entry]) -> Iterator[tuple[str, str]]:
    """Yields names with comments; the same table of A and of B is one line."""
    lines: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        name = entry.path if entry.kind == "view" else f"{entry.path}({', '.join(entry.parameters)})"
        lines.setdefault((entry.name, entry.comment), []).append(name)
    for (_, comment), names in lines.items():
        yield ", ".join(names), comment


def _table(title: str | None, *columns: str) -> Table:
    table = new_table(title)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("column", "type"))
    return table


def _width(terminal: bool) -> int | None:
    return shutil.get_terminal_size().columns if terminal else None
