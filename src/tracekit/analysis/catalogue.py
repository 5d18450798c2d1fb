"""What a session offers by name, as its catalogue tells it: views and their columns, macros, functions, keywords."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Literal

from tracekit.analysis.session import Session
from tracekit.errors import QueryError, nearest

_PUBLIC = "NOT internal AND {name}[1] <> '_' ORDER BY ALL"
_VIEWS = "SELECT schema_name, view_name, comment FROM duckdb_views() WHERE " + _PUBLIC.format(name="view_name")
_COLUMNS = "SELECT schema_name, table_name, column_index, column_name, data_type, comment FROM duckdb_columns() WHERE "
_COLUMNS += _PUBLIC.format(name="table_name")
_MACROS = "SELECT schema_name, function_name, comment, parameters FROM duckdb_functions() WHERE "
_MACROS += _PUBLIC.format(name="function_name")
_FUNCTIONS = (
    "SELECT DISTINCT function_name FROM duckdb_functions() WHERE internal AND function_name[1] BETWEEN 'a' AND 'z'"
)
_KEYWORDS = "SELECT DISTINCT keyword_name FROM duckdb_keywords() ORDER BY ALL"

# The module of what no .sql file comments.
_OTHER = "other"
_COMMENTED = re.compile(r"^COMMENT ON (?:VIEW|MACRO|TABLE MACRO|FUNCTION) (\w+) ", re.MULTILINE)


@dataclass(frozen=True)
class Column:
    """A column of a view."""

    name: str
    type: str
    comment: str


@dataclass(frozen=True)
class Entry:
    """A public view or macro.

    Attributes:
        kind: which of both.
        schema: 'main', or 'a' or 'b' for a table of one of two traces.
        name: its name in the schema.
        comment: what it is.
        module: the .sql file that makes it, as a path below sql/ without its ending.
        parameters: of a macro.
        columns: of a view, in order.
    """

    kind: Literal["view", "macro"]
    schema: str
    name: str
    comment: str
    module: str
    parameters: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()

    @property
    def path(self) -> str:
        """The name by which a query finds it."""
        return self.name if self.schema == "main" else f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class Catalogue:
    """All names of a session.

    Attributes:
        entries: public views and macros.
        functions: names of DuckDB's own functions.
        keywords: SQL's keywords, in capitals.
    """

    entries: tuple[Entry, ...]
    functions: tuple[str, ...]
    keywords: tuple[str, ...]

    @classmethod
    def of(cls, session: Session) -> Catalogue:
        """Reads the catalogue of a session."""
        columns: dict[tuple[str, str], list[Column]] = {}
        for schema, view, _, name, kind, comment in session.sql(_COLUMNS).rows():
            columns.setdefault((schema, view), []).append(Column(name, kind, comment or ""))
        homes = _homes()
        entries = [
            Entry("view", schema, name, comment or "", homes.get(name, _OTHER), (), tuple(columns[schema, name]))
            for schema, name, comment in session.sql(_VIEWS).rows()
        ]
        entries += [
            Entry("macro", schema, name, comment or "", homes.get(name, _OTHER), tuple(parameters))
            for schema, name, comment, parameters in session.sql(_MACROS).rows()
        ]
        functions = sorted(name for (name,) in session.sql(_FUNCTIONS).rows() if name.isidentifier())
        keywords = tuple(name.upper() for (name,) in session.sql(_KEYWORDS).rows())
        return cls(tuple(entries), tuple(functions), keywords)

    @property
    def schemas(self) -> list[str]:
        """Names of schemas that must be given: 'a' and 'b' where there are two traces."""
        return sorted({entry.schema for entry in self.entries} - {"main"})

    def modules(self) -> dict[str, list[Entry]]:
        """Returns the entries by the folder of their module, both sorted by name."""
        found: dict[str, list[Entry]] = {}
        for entry in sorted(self.entries, key=lambda entry: (entry.module.split("/")[0], entry.name, entry.schema)):
            found.setdefault(entry.module.split("/")[0], []).append(entry)
        return found

    def find(self, name: str) -> Entry:
        """Returns the entry of a name; with two traces, a table's bare name stands for that of A.

        Raises:
            QueryError: there is none; names the nearest one.
        """
        wanted = name.lower().removesuffix("()")
        for entry in self.entries:
            if wanted in (entry.path, entry.name):
                return entry
        raise QueryError(f"no view or macro '{name}'{nearest(name, {entry.path for entry in self.entries})}")


@functools.cache
def _homes() -> dict[str, str]:
    """Which module of the library comments a view or macro, by its name."""
    found = {}
    for path, text in _texts(resources.files(__package__).joinpath("sql"), ""):
        found.update(dict.fromkeys(_COMMENTED.findall(text), path))
    return found


def _texts(folder: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for child in sorted(folder.iterdir(), key=lambda child: child.name):
        if child.is_dir():
            yield from _texts(child, f"{prefix}{child.name}/")
        elif child.name.endswith(".sql"):
            yield prefix + child.name.removesuffix(".sql"), child.read_text(encoding="utf-8")
