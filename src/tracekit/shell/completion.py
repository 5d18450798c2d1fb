"""Completes names from the session's own catalogue, and dot-commands with what they take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from tracekit.analysis.catalogue import Column, Entry
from tracekit.shell.commands import COMMANDS

if TYPE_CHECKING:
    from tracekit.shell.interpreter import Interpreter

_WORD = re.compile(r"[\w.]*$")
# Of `FROM pairs AS p`: what is read, and what it is called there.
_READ = re.compile(r"\b(?:FROM|JOIN)\s+(?P<path>\w+(?:\.\w+)?)(?:\s+(?:AS\s+)?(?P<alias>\w+))?", re.IGNORECASE)
_LONGEST_META = 60


class NameCompleter(Completer):
    """Offers names that begin with the word before the cursor.

    First columns of the views that the statement reads, then views, macros and schemas, the other columns, keywords,
    DuckDB's functions.

    Args:
        interpreter: whose catalogue is asked.
    """

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        before = document.text_before_cursor
        if before.lstrip().startswith("."):
            yield from self._of_command(before.lstrip(), complete_event)
            return
        found = _WORD.search(before)
        word = found[0] if found else ""
        seen: set[str] = set()
        for name, meta in self._of_statement(document.text, word):
            if name.lower().startswith(word.lower()) and name not in seen:
                seen.add(name)
                yield Completion(name, start_position=-len(word), display_meta=_shortened(meta))

    def _of_command(self, line: str, event: CompleteEvent) -> Iterator[Completion]:
        name, space, argument = line.partition(" ")
        if not space:
            for command in COMMANDS.values():
                if command.name.startswith(name):
                    yield Completion(command.name, start_position=-len(name), display_meta=command.text)
            return
        given = COMMANDS.get(name)
        if given is None:
            return
        if given.is_path:
            yield from self._paths.get_completions(Document(argument), event)
            return
        for value, meta in self._values(given.name):
            if value.startswith(argument.lower()):
                yield Completion(value, start_position=-len(argument), display_meta=_shortened(meta))

    def _values(self, command: str) -> Iterable[tuple[str, str]]:
        if command == ".help":
            return [(entry.path, entry.comment) for entry in self._interpreter.catalogue.entries]
        return [(value, "") for value in COMMANDS[command].values()]

    def _of_statement(self, text: str, word: str) -> Iterator[tuple[str, str]]:
        catalogue = self._interpreter.catalogue
        views = {entry.path.lower(): entry for entry in catalogue.entries if entry.kind == "view"}
        read = _views_read(text, views)
        qualifier, dot, _ = word.rpartition(".")
        if dot:
            # 'pairs.', 'p.' of an alias, 'a.tokens.', or the schema 'a.'.
            entry = read.get(qualifier.lower()) or views.get(qualifier.lower())
            if entry:
                yield from ((f"{qualifier}.{name}", meta) for name, meta in _columns([entry]))
            yield from ((path, view.comment) for path, view in views.items() if view.schema == qualifier.lower())
            return
        yield from _columns(read.values())
        for entry in catalogue.entries:
            if entry.kind == "macro":
                yield f"{entry.path}(", entry.comment
            else:
                yield entry.path, entry.comment
        yield from ((f"{schema}.", "tables of one trace") for schema in catalogue.schemas)
        if not read:
            yield from _columns(views.values())
        # In the case that the user writes.
        yield from ((name.lower() if word and word.islower() else name, "") for name in catalogue.keywords)
        yield from ((f"{name}(", "") for name in catalogue.functions)


def _views_read(text: str, views: dict[str, Entry]) -> dict[str, Entry]:
    """The views that a statement reads, by each name that they have in it."""
    found = {}
    for match in _READ.finditer(text):
        entry = views.get(match["path"].lower())
        if entry is not None:
            for name in (match["path"], match["alias"]):
                if name:
                    found[name.lower()] = entry
    return found


def _columns(entries: Iterable[Entry]) -> Iterator[tuple[str, str]]:
    return ((column.name, _meta(column)) for entry in entries for column in entry.columns)


def _meta(column: Column) -> str:
    return f"{column.type}: {column.comment}"


def _shortened(text: str) -> str:
    first = text.partition(". ")[0]
    return first if len(first) <= _LONGEST_META else first[: _LONGEST_META - 1] + "…"
