"""What of the library a session has not loaded yet: a statement makes it load what it names, and no more."""

from __future__ import annotations

import functools
import itertools
import re
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import duckdb

from tracekit.analysis import library

_WORD = re.compile(r"\w+")
# Who names one of these may look at everything there is.
_LISTING = re.compile(
    r"\b(duckdb_|information_schema|pg_|sqlite_|pragma|query)|(^|[(;]|\*/)\s*(show|describe|desc)\b",
    re.IGNORECASE | re.MULTILINE,
)

# Runs a step, which an interruption may end.
Run = Callable[[duckdb.DuckDBPyConnection, Callable[[], object]], object]


@dataclass(frozen=True)
class _Module:
    """A step that is to be taken in the current schema of a cursor."""

    cursor: duckdb.DuckDBPyConnection
    step: library.Step

    def load(self) -> None:
        library.load(self.cursor, (self.step,))


@dataclass(frozen=True)
class _Comments:
    """The comments of modules that stand in the current schema of a cursor without them."""

    cursor: duckdb.DuckDBPyConnection
    steps: tuple[library.Step, ...]

    def load(self) -> None:
        library.comment(self.cursor, self.steps)


class Pending:
    """Steps of the library, in the order in which they may be taken, and the comments of modules that are loaded."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, run: Run) -> None:
        """Makes it empty.

        Args:
            connection: the session's.
            run: runs the loading of a module.
        """
        self._connection = connection
        self._run = run
        self._modules: list[_Module] = []
        self._comments: list[_Comments] = []
        self._cursors: dict[str, duckdb.DuckDBPyConnection] = {}
        self._loading = threading.Lock()

    def add(self, schema: str, steps: Iterable[library.Step], *, uncommented: Iterable[library.Step] = ()) -> None:
        """Puts off steps in a schema, and the comments of modules that are loaded."""
        cursor = self._cursor(schema)
        self._modules += [_Module(cursor, step) for step in steps]
        self._comments.append(_Comments(cursor, tuple(uncommented)))

    def load_for(self, query: str) -> None:
        """Loads what a statement names, and what that is made of."""
        if not self._modules and not self._comments:
            return
        if _LISTING.search(query):
            self.load_all()
            return
        with self._loading:
            wanted = set(_WORD.findall(query.casefold()))
            chosen = []
            # A module uses only what stands before it.
            for module in reversed(self._modules):
                if wanted & library.made_by(module.step):
                    chosen.append(module)
                    wanted |= library.words_of(module.step)
            self._load(chosen[::-1])

    def load_all(self) -> None:
        """Loads everything."""
        with self._loading:
            self._load([*self._modules, *self._comments])

    @property
    def cursors(self) -> Collection[duckdb.DuckDBPyConnection]:
        """On which it loads what was added so far."""
        return self._cursors.values()

    def close(self) -> None:
        """Closes the cursors; nothing can be loaded any more."""
        for cursor in self._cursors.values():
            cursor.close()

    def _load(self, steps: Iterable[_Module | _Comments]) -> None:
        for cursor, of_schema in itertools.groupby(steps, key=lambda step: step.cursor):
            self._run(cursor, functools.partial(self._load_in, cursor, list(of_schema)))

    def _load_in(self, cursor: duckdb.DuckDBPyConnection, steps: list[_Module | _Comments]) -> None:
        """Loads wholly or not at all."""
        cursor.begin()
        try:
            for step in steps:
                step.load()
        except BaseException:  # an interruption, too; whatever it is, it goes on to the caller
            cursor.rollback()
            raise
        cursor.commit()
        # Here, and not after it was waited for: an interruption may come once all is done.
        self._modules = [module for module in self._modules if module not in steps]
        self._comments = [comments for comments in self._comments if comments not in steps]

    def _cursor(self, schema: str) -> duckdb.DuckDBPyConnection:
        # Which schema is the current one cannot be changed once the session is locked.
        if schema not in self._cursors:
            self._cursors[schema] = self._connection.cursor()
            self._cursors[schema].execute(f"USE {schema}")
        return self._cursors[schema]
