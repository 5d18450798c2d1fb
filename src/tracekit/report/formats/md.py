"""A Markdown table, as GitHub reads it: values as people read them, numbers to the right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

from tracekit.report.formats.base import Rows, python_rows
from tracekit.report.formats.table import is_number
from tracekit.report.values import printable, to_text

# What would end a cell, or begin HTML, code, emphasis or a link.
_SPECIAL = {ord(character): f"\\{character}" for character in "\\|`*[]"} | {ord("<"): "&lt;"}


def write(rows: Rows, sink: BinaryIO) -> None:
    fields = list(rows.schema)
    sink.write(line(printable(field.name) for field in fields).encode())
    sink.write(rule(is_number(field.type) for field in fields).encode())
    for row in python_rows(rows):
        sink.write(line(to_text(value) for value in row).encode())


def line(cells: Iterable[str]) -> str:
    """Returns one row of a table, with what would end a cell or begin markup escaped."""
    return "| " + " | ".join(map(_escaped, cells)) + " |\n"


def rule(numbers: Iterable[bool]) -> str:
    """Returns the line below a head; columns of numbers stand to the right."""
    return "| " + " | ".join("---:" if is_one else "---" for is_one in numbers) + " |\n"


def _escaped(text: str) -> str:
    return text.translate(_SPECIAL)
