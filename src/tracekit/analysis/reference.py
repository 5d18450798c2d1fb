"""What the SQL library offers: its public objects, as the modules define them and as DuckDB sees them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import duckdb

from tracekit.analysis import library
from tracekit.analysis.source import add_empty_tables
from tracekit.errors import QueryError, nearest

Scope = Literal["any", "trace", "pair", "tokenizer"]

_DEFINED = re.compile(r"\s*CREATE (VIEW|MACRO) (\w+)")
_LEADING_COMMENTS = re.compile(r"^(\s*--[^\n]*\n|\s)*")
_EXAMPLE = re.compile(r"^-- Example: ((?:.*\n)(?:-- .*\n)*)COMMENT ON (?:VIEW|MACRO|MACRO TABLE) (\w+) ", re.MULTILINE)


@dataclass(frozen=True)
class Column:
    """A column of a view.

    Attributes:
        name: its name.
        type: its type in SQL.
        comment: what it means.
    """

    name: str
    type: str
    comment: str


@dataclass(frozen=True)
class Entry:
    """A public view or macro.

    Attributes:
        module: the module that defines it.
        scope: 'any' session has it, once; 'trace': one for each trace, in the schemas a and b where there are two;
            'pair': where there are two traces; 'tokenizer': where the session was given one.
        kind: view, macro, or table macro.
        name: its name.
        parameters: of a macro.
        comment: what it is.
        columns: of a view.
        definition: the statement that makes it.
        example: a query that uses it; None where there is none.
    """

    module: str
    scope: Scope
    kind: str
    name: str
    parameters: tuple[str, ...]
    comment: str
    columns: tuple[Column, ...]
    definition: str
    example: str | None

    @property
    def call(self) -> str:
        """The name, with a macro's parameters."""
        return self.name if self.kind == "view" else f"{self.name}({', '.join(self.parameters)})"


def entries() -> list[Entry]:
    """Returns all public objects, module by module in the order of loading, each module's in the order of its text."""
    found: list[Entry] = []
    with duckdb.connect() as connection:
        # Which DuckDB shows by itself where it takes Python for interactive.
        connection.execute("SET enable_progress_bar = false")
        connection.execute("CREATE TABLE _vocabulary (token_id INTEGER, text VARCHAR)")
        connection.execute("CREATE TABLE _token_texts (texts VARCHAR[])")
        found += _loaded(connection, library.MACROS, "any")
        for side in ("a", "b"):
            connection.execute(f"CREATE SCHEMA {side}")
            connection.execute(f"USE {side}")
            add_empty_tables(connection)
            of_side = list(_loaded(connection, library.TRACE, "trace"))
            found += of_side if side == "a" else []
            library.load(connection, library.SIDE)
        connection.execute("USE main")
        found += _loaded(connection, library.PAIR, "pair")
        found += _loaded(connection, library.COMPARISON, "pair")
        found += _loaded(connection, library.VOCABULARY, "tokenizer")
    return found


def entry(name: str) -> Entry:
    """Returns one public object.

    Raises:
        QueryError: there is none of this name.
    """
    known = {each.name: each for each in entries()}
    plain = re.sub(r"^[ab]\.", "", name.lower())
    if plain not in known:
        raise QueryError(f"the SQL library has no view or macro '{name}'{nearest(plain, known)}")
    return known[plain]


def _loaded(connection: duckdb.DuckDBPyConnection, steps: tuple[library.Step, ...], scope: Scope) -> Iterator[Entry]:
    for module in library.modules(steps):
        library.load(connection, (module,))
        examples = {name: _uncommented(text) for text, name in _EXAMPLE.findall(library.module(module))}
        for statement in connection.extract_statements(library.module(module)):
            # A statement's text goes on to the next one's, comments between them included.
            text = _LEADING_COMMENTS.sub("", statement.query).rpartition(";")[0] + ";"
            match = _DEFINED.match(text)
            if match is not None and not match[2].startswith("_"):
                name = match[2]
                described = _view if match[1] == "VIEW" else _macro
                kind, parameters, comment, columns = described(connection, name)
                yield Entry(module, scope, kind, name, parameters, comment, columns, text, examples.get(name))


def _view(connection: duckdb.DuckDBPyConnection, name: str) -> tuple[str, tuple[str, ...], str, tuple[Column, ...]]:
    here = "schema_name = current_schema()"
    comment = _rows(connection, f"SELECT comment FROM duckdb_views() WHERE {here} AND view_name = $1", name)[0][0]
    query = f"SELECT column_name, data_type, comment FROM duckdb_columns() WHERE {here} AND table_name = $1"
    columns = _rows(connection, f"{query} ORDER BY column_index", name)
    return "view", (), comment or "", tuple(Column(column, of_type, text or "") for column, of_type, text in columns)


def _macro(connection: duckdb.DuckDBPyConnection, name: str) -> tuple[str, tuple[str, ...], str, tuple[Column, ...]]:
    query = (
        "SELECT function_type, parameters, comment FROM duckdb_functions() WHERE NOT internal AND function_name = $1"
    )
    kind, parameters, comment = _rows(connection, query, name)[0]
    return kind.replace("_", " "), tuple(parameters), comment or "", ()


def _rows(connection: duckdb.DuckDBPyConnection, query: str, name: str) -> list[tuple]:  # type: ignore[type-arg]
    return connection.execute(query, [name]).fetchall()


def _uncommented(text: str) -> str:
    return "\n".join(line.removeprefix("-- ") for line in text.strip().splitlines())
