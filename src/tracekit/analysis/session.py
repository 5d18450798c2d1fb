"""A DuckDB connection over one or two traces that can read them and do nothing else."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa

from tracekit.analysis import library
from tracekit.analysis.alignment import Alignment, align
from tracekit.analysis.failures import read_error
from tracekit.analysis.interruption import interruptible
from tracekit.analysis.result import Result
from tracekit.analysis.source import add_trace
from tracekit.analysis.statements import reading_statement
from tracekit.analysis.vocabulary import read_vocabulary
from tracekit.store import Trace

_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    # Otherwise a table name in a query could read a variable of the calling program.
    "python_enable_replacements": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


class Session:
    """One or two traces as SQL views; made by `connect`.

    One trace: a view for each table of the format; `tokens` shows delivered tokens, `tokens_all` every row.
    Two traces: the same views in the schemas `a` and `b`, and `pairs`, `first_divergence` and `metrics` beside them.
    Every public view, column and macro has a comment: `FROM duckdb_views()`, `duckdb_columns()`, `duckdb_functions()`.

    A trace is untrusted data: the connection reads the listed part files, no other file, and only statements that
    read are run.

    Attributes:
        a: the first trace, or the only one.
        b: the second trace, or None.
        alignment: how the requests of both were paired; None for one trace.
    """

    def __init__(
        self, a: Trace, b: Trace | None = None, *, method: str | None = None, tokenizer: Path | None = None
    ) -> None:
        self.a = a
        self.b = b
        vocabulary = None if tokenizer is None else read_vocabulary(tokenizer)
        self.alignment: Alignment | None = None
        self._files: list[Path] = []
        # DuckDB makes this folder when memory runs out, and removes it when it closes.
        spill = Path(tempfile.gettempdir(), f"tracekit-{uuid.uuid4().hex}")
        self._connection = duckdb.connect(config={**_CONFIG, "temp_directory": str(spill)})
        try:
            if vocabulary is not None:
                self._add_vocabulary(vocabulary)
            interruptible(self._connection, lambda: self._open(method))
        except duckdb.Error as error:
            self.close()
            raise self._failure(error) from error
        except BaseException:
            self.close()
            raise

    def sql(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> Result:
        """Runs one statement that reads.

        Args:
            query: the statement, in DuckDB's SQL.
            parameters: values for $1, $2, … or for $name.

        Raises:
            QueryError: the statement does more than read, or DuckDB refuses it.
            TraceFormatError: a part file cannot be read.
        """
        cursor = self._connection.cursor()
        statement = reading_statement(cursor, query)
        try:
            relation = interruptible(cursor, lambda: cursor.sql(statement, params=parameters))
        except duckdb.Error as error:
            raise self._failure(error) from error
        return Result(cursor, relation, self._failure)

    def views(self) -> list[str]:
        """Returns the names of the public views, with their schema where there are two traces."""
        query = (
            "SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal AND view_name[1] <> '_' ORDER BY ALL"
        )
        rows = self._connection.cursor().execute(query).fetchall()
        return [view if schema == "main" else f"{schema}.{view}" for schema, view in rows]

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, method: str | None) -> None:
        self._connection.execute("SET parquet_metadata_cache = true")
        library.load(self._connection, library.ARITHMETIC)
        if self.b is None:
            self._files = add_trace(self._connection, self.a, "main")
        else:
            for name, trace in (("a", self.a), ("b", self.b)):
                self._connection.execute(f"CREATE SCHEMA {name}")
                self._files += add_trace(self._connection, trace, name)
            self._connection.execute("USE main")
            self.alignment = align(self._connection, self.a, self.b, method)
            library.load(self._connection, library.COMPARISON)
            self._connection.execute("\n".join(library.pair_comments()))
        self._lock()

    def _add_vocabulary(self, vocabulary: pa.Table) -> None:
        self._connection.register("_given", vocabulary)
        self._connection.execute("CREATE TABLE _vocabulary AS FROM _given")
        self._connection.unregister("_given")
        self._connection.execute("CREATE TABLE _token_texts AS SELECT list(text ORDER BY token_id) FROM _vocabulary")
        library.load(self._connection, library.VOCABULARY)

    def _lock(self) -> None:
        self._connection.execute("SET allowed_paths = $1", [[str(path) for path in self._files]])
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")

    def _failure(self, error: duckdb.Error) -> Exception:
        try:
            known = self.views()
        except duckdb.Error:
            known = []
        return read_error(error, self._files, known)


def connect(
    a: Trace | Path | str,
    b: Trace | Path | str | None = None,
    *,
    align: str | None = None,
    tokenizer: Path | str | None = None,
) -> Session:
    """Opens one trace for questions, or two for comparison.

    Args:
        a: the trace, or the recorded side of a comparison.
        b: the replayed or trained side.
        align: how requests are paired: 'request_id', 'external_id' or 'prompt'. By default the first that fits:
            request ids where one trace descends from the other or both from one parent, the callers' ids where
            they are unique and some occur on both sides, else equal prompts in order of arrival.
        tokenizer: a model's folder or tokenizer.json: gives the view `vocabulary` and the macros `token_text` and
            `token_texts`.

    Raises:
        NotATraceError: a path holds no trace.
        TraceFormatError: a trace that this release cannot read.
        AlignmentError: two traces whose requests do not pair or whose prompts differ; names the first request.
    """
    first = a if isinstance(a, Trace) else Trace(a)
    second = b if isinstance(b, Trace) or b is None else Trace(b)
    return Session(first, second, method=align, tokenizer=None if tokenizer is None else Path(tokenizer))


def requests_where(trace: Trace | Path | str, condition: str) -> list[tuple[str, str]]:
    """Returns the requests of a trace for which an SQL condition on the view `requests` is true.

    Args:
        trace: the trace, or its path.
        condition: e.g. "temperature = 0 AND group_id IS NOT NULL".

    Returns:
        The run's and the request's id of each.

    Raises:
        NotATraceError, TraceFormatError: the trace cannot be read.
        QueryError: DuckDB refuses the condition.
    """
    with connect(trace) as session:
        # On lines of its own: it may end with a comment.
        rows = session.sql(f"SELECT run_id, request_id FROM requests WHERE (\n{condition}\n)").rows()
    return [(run_id, request_id) for run_id, request_id in rows]
