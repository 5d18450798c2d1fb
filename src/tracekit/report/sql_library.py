"""The SQL library as people read it: the list of what there is, and one object explained."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from tracekit.analysis.reference import Entry
from tracekit.report.console import new_table, to_bytes

SCOPES = {
    "any": "in every session",
    "trace": "of one trace; with two, each has its own: a.{name} and b.{name}",
    "pair": "where two traces are compared",
    "tokenizer": "where a tokenizer is given",
}


def listing(entries: Sequence[Entry]) -> bytes:
    """Returns one line an object: module, name, and the first sentence of its comment."""
    table = new_table()
    for name in ("module", "name", "what it is"):
        table.add_column(name, overflow="fold")
    module = None
    for entry in entries:
        table.add_row(entry.module if entry.module != module else "", entry.call, first_sentence(entry.comment))
        module = entry.module
    return to_bytes(table)


def explanation(entry: Entry, *, definition: bool = False) -> bytes:
    """Returns all that is known of one object.

    Args:
        entry: the object.
        definition: show the statement that makes it, too.
    """
    scope = SCOPES[entry.scope].format(name=entry.name)
    parts: list[RenderableType] = [Text(f"{entry.call}: {entry.kind} of {entry.module}, {scope}"), Text(entry.comment)]
    if entry.columns:
        table = new_table()
        for name in ("column", "type", "meaning"):
            table.add_column(name, overflow="fold")
        for column in entry.columns:
            table.add_row(column.name, column.type, column.comment)
        parts.append(table)
    if entry.example:
        indented = entry.example.replace("\n", "\n  ")
        parts.append(Text(f"Example:\n  {indented}"))
    if definition:
        parts.append(Text(f"\n{entry.definition}"))
    return to_bytes(*parts)


def first_sentence(comment: str) -> str:
    """Returns a comment up to its first full stop."""
    head, stop, _ = comment.partition(". ")
    return head + "." if stop else comment
