"""A table for people: as wide as the terminal on one, unbroken into a pipe; rows that are too wide become records."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from typing import BinaryIO

import pyarrow as pa
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tracekit.report.console import natural_width, new_table, render
from tracekit.report.formats.base import Rows, python_rows
from tracekit.report.values import printable, to_text

# Text may be folded down to this; below it a row is no longer read as one.
_NARROWEST_TEXT = 20


def write(rows: Rows, sink: BinaryIO) -> None:
    write_first(rows, sink, None)


def write_first(rows: Rows, sink: BinaryIO, max_rows: int | None) -> int:
    """Writes a table of the first rows.

    Args:
        rows: the rows.
        sink: where the bytes go. On a terminal the table has its width and colours.
        max_rows: how many rows are shown; None shows all.

    Returns:
        How many rows were left out.
    """
    width = shutil.get_terminal_size().columns if sink.isatty() else None
    values = python_rows(rows)
    shown = [[to_text(value) for value in row] for row in itertools.islice(values, max_rows)]
    sink.write(lay_out(rows.schema, shown, width))
    return sum(1 for _ in values)


def lay_out(schema: pa.Schema, rows: Sequence[Sequence[str]], width: int | None) -> bytes:
    """Returns rows as text.

    Args:
        schema: names and types of the columns.
        rows: the cells.
        width: columns of the terminal, or None for a pipe, where no line is broken. Where a row does not fit, even
            with its texts folded, each becomes a record: a line for each column.
    """
    table = _table(schema, rows)
    if width is None or natural_width(table) <= width:
        return render(table, width=width)
    folded = _table(schema, rows, narrowest=_NARROWEST_TEXT)
    if natural_width(folded) <= width:
        return render(_table(schema, rows, fold=True), width=width)
    return render(*_records(schema, rows), width=width)


def _table(
    schema: pa.Schema, rows: Sequence[Sequence[str]], *, narrowest: int | None = None, fold: bool = False
) -> Table:
    """A table; with `narrowest`, its texts cut to that width, to see whether it would fit."""
    table = new_table()
    for field in schema:
        number = is_number(field.type)
        name = printable(field.name)
        # Where texts are folded, figures are not: half of a figure is another figure.
        table.add_column(
            name,
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=fold and number,
            min_width=len(name) if fold else None,
        )
    keep = [is_number(field.type) for field in schema]
    for row in rows:
        cells = row if narrowest is None else [c if k else c[:narrowest] for c, k in zip(row, keep, strict=True)]
        # As Text: a cell of a trace is no markup, and its blanks stand.
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _records(schema: pa.Schema, rows: Sequence[Sequence[str]]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    named = [(f"row {index + 1:,}", row) for index, row in enumerate(rows)] or [("no row", [""] * len(schema))]
    for title, row in named:
        record = new_table()
        record.add_column(title, no_wrap=True)
        record.add_column("", overflow="fold")
        for name, cell in zip(schema.names, row, strict=True):
            record.add_row(printable(name), Text(cell))
        parts.append(record)
    return parts


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type stands to the right."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
