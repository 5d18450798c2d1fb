"""A DuckDB connection over one or two traces that can read them and do nothing else."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa

from tracekit.analysis import library
from tracekit.analysis.alignment import Alignment, Unaligned, align
from tracekit.analysis.failures import read_error
from tracekit.analysis.in_place import add_in_place
from tracekit.analysis.interruption import interruptible
from tracekit.analysis.pairing import Pairing
from tracekit.analysis.pending import Pending
from tracekit.analysis.result import Result
from tracekit.analysis.sharing import Comparing, Measuring, Share
from tracekit.analysis.source import add_trace
from tracekit.analysis.statements import reading_statement
from tracekit.analysis.vocabulary import read_vocabulary
from tracekit.cluster import Cluster
from tracekit.errors import BackendUnavailableError, OutputExistsError, QueryError, TracekitError
from tracekit.limits import Limits
from tracekit.store import Hold, Trace

_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    # Otherwise a table name in a query could read a variable of the calling program.
    "python_enable_replacements": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    # Otherwise what a query is done with is kept: a GiB after tens of millions of rows.
    "allocator_background_threads": True,
}
# Whoever opens a session's file may have an older DuckDB than this one.
_OLDEST = "v1.0.0"
_COUNT_PROGRESS = "SET enable_progress_bar = true; SET enable_progress_bar_print = false; SET progress_bar_time = 0"
_NUM_WATCHED = 100


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
        self,
        a: Trace,
        b: Trace | None = None,
        *,
        pairing: Pairing | None = None,
        tokenizer: Path | None = None,
        limits: Limits | None = None,
        progress: Callable[[float], None] | None = None,
        share: Share | None = None,
        measure: Measuring | None = None,
        database: Path | None = None,
    ) -> None:
        self.a = a
        self.b = b
        self._progress = progress
        self._share = share
        self._measure = measure
        self._watched: list[duckdb.DuckDBPyConnection] = []
        vocabulary = None if tokenizer is None else read_vocabulary(tokenizer)
        self.alignment: Alignment | None = None
        self._files: list[Path] = []
        self._holds: list[Hold] = []
        self._connection = _opened(database, {**_CONFIG, **_limited(limits or Limits())})
        self._pending = Pending(self._connection, lambda cursor, load: interruptible(cursor, load, progress))
        try:
            self._add_vocabulary(vocabulary)
            # Who measures elsewhere tells how far that is.
            watch = progress if measure is None else None
            cancel = None if measure is None else measure.cancel
            interruptible(self._connection, lambda: self._open(pairing or Pairing()), watch, cancel)
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
        cursor = self._watched.pop() if self._watched else self._connection.cursor()
        statement = reading_statement(cursor, query)
        try:
            self._pending.load_for(query)
            relation = interruptible(cursor, lambda: cursor.sql(statement, params=parameters), self._progress)
        except duckdb.Error as error:
            raise self._failure(error) from error
        return Result(cursor, relation, self._failure, self._progress)

    def views(self) -> list[str]:
        """Returns the names of the public views, with their schema where there are two traces."""
        self._load()
        return self._views()

    def _views(self) -> list[str]:
        query = (
            "SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal AND view_name[1] <> '_' ORDER BY ALL"
        )
        rows = self._connection.cursor().execute(query).fetchall()
        return [view if schema == "main" else f"{schema}.{view}" for schema, view in rows]

    def unaligned(self) -> list[Unaligned]:
        """Returns why requests of either trace stand in no pair, the reason with most requests first."""
        if self.b is None:
            return []
        return [Unaligned(**row) for row in self.sql("FROM _unaligned_reasons").dicts()]

    def workspace(self, queries: str | None = None) -> duckdb.DuckDBPyConnection:
        """Returns a connection on which code of this package may make temporary tables beside the library.

        Args:
            queries: the text of what will be asked there; by default everything is loaded.
        """
        self._load(queries)
        return self._connection.cursor()

    def disconnect(self) -> None:
        """Closes the connection; the part files stay in place until `close`, for others to read.

        What the session had is then in the file `database` that it was made with: any DuckDB opens it.
        """
        self._load()
        self._disconnect()

    def close(self) -> None:
        """Closes the connection."""
        self._disconnect()
        for hold in self._holds:
            hold.release()

    def _disconnect(self) -> None:
        self._pending.close()
        for cursor in self._watched:
            cursor.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, pairing: Pairing) -> None:
        self._connection.execute("SET parquet_metadata_cache = true")
        if self._progress is not None:
            self._connection.execute(_COUNT_PROGRESS)
        library.load(self._connection, (*library.MACROS, *library.FILES), commented=False)
        self._pending.add("main", (), uncommented=library.MACROS)
        if self.b is None:
            self._add_trace(self.a, "main")
        else:
            sides = []
            for name, trace in (("a", self.a), ("b", self.b)):
                self._connection.execute(f"CREATE SCHEMA {name}")
                sides.append(self._add_trace(trace, name))
            self._connection.execute("USE main")
            add_in_place(self._connection, *sides)
            provisional = self._share is not None
            self.alignment = align(
                self._connection, self.a, self.b, pairing, measure=self._measure, provisional=provisional
            )
            eager, sums = (*library.PAIR, *library.COMPARISON_PAIRS), library.COMPARISON_SUMS
            if self._measure is None:
                self._pending.add("main", (*sums, *library.COMPARISON_VIEWS), uncommented=eager)
            else:
                self._pending.add("main", library.COMPARISON_VIEWS, uncommented=(*eager, *sums))
        self._lock()

    def _load(self, queries: str | None = None) -> None:
        try:
            if queries is None:
                self._pending.load_all()
            else:
                self._pending.load_for(queries)
        except duckdb.Error as error:
            raise read_error(error, self._files, []) from error

    def _add_trace(self, trace: Trace, namespace: str) -> list[Path]:
        files, holds = add_trace(self._connection, trace, namespace, self._share)
        self._files += files
        self._holds += holds
        self._pending.add(namespace, library.TRACE_VIEWS, uncommented=library.TRACE_TABLES)
        return files

    def _add_vocabulary(self, vocabulary: pa.Table | None) -> None:
        if vocabulary is None:
            self._connection.execute("CREATE TABLE _token_texts (texts VARCHAR[])")
            return
        self._connection.register("_given", vocabulary)
        self._connection.execute("CREATE TABLE _vocabulary AS FROM _given")
        self._connection.unregister("_given")
        self._connection.execute("CREATE TABLE _token_texts AS SELECT list(text ORDER BY token_id) FROM _vocabulary")
        library.load(self._connection, library.VOCABULARY)

    def _lock(self) -> None:
        if self._progress is not None:
            # A setting of a cursor, which no cursor can be given any more when the configuration is locked.
            self._watched = [self._connection.cursor() for _ in range(_NUM_WATCHED)]
            for cursor in (*self._watched, *self._pending.cursors):
                cursor.execute(_COUNT_PROGRESS)
        self._connection.execute("SET allowed_paths = $1", [[str(path) for path in self._files]])
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")

    def _failure(self, error: duckdb.Error) -> Exception:
        # For "did you mean"; where the library itself cannot be loaded, the first error is the one to tell.
        try:
            known = self.views()
        except (duckdb.Error, TracekitError):
            known = []
        return read_error(error, self._files, known)


def connect(
    a: Trace | Path | str,
    b: Trace | Path | str | None = None,
    *,
    align: str | None = None,
    partial: bool = False,
    any_tokenizer: bool = False,
    tokenizer: Path | str | None = None,
    policy: str | None = None,
    trainer_step: int | None = None,
    memory_limit: str | None = None,
    threads: int | None = None,
    temp_dir: Path | str | None = None,
    progress: Callable[[float], None] | None = None,
    cluster: Cluster | None = None,
    database: Path | str | None = None,
) -> Session:
    """Opens one trace for questions, or two for comparison.

    Args:
        a: the trace, or the recorded side of a comparison.
        b: the replayed or trained side.
        align: how requests are paired: 'request', 'external' or 'prompt'. By default the first that fits: request
            ids where one trace descends from the other or both from one parent, the callers' ids with the sample
            index where they are unique and some occur on both sides, else equal prompts in order of arrival.
        partial: compare also where requests with tokens have no counterpart. It is not needed where a trace says
            itself that it is a part: a replay of chosen requests, and a trainer's trace.
        any_tokenizer: compare also where the files of the tokenizers differ.
        tokenizer: a model's folder, its tokenizer.json, or a Parquet file with the columns token_id and text: gives the
            view `vocabulary` and the macros `token_text` and `token_texts`.
        policy, trainer_step: which pass of a trainer's trace is compared, where it holds several over one request. By
            default the nearest to the rollout: policy 'old' before 'current', and the first step.
        memory_limit: most memory that DuckDB uses, like '4GB'; what does not fit goes to `temp_dir`. By default 80% of
            the machine's.
        threads: how many it computes with; by default one a core.
        temp_dir: an existing folder; by default the system's for temporary files.
        progress: is told a few times a second how much of what is being computed is done, in per cent; less than 0
            where that is unknown. Each query counts from 0; those after the first hundred are not watched.
        cluster: workers that measure two compacted traces, each some of their buckets, within the limits each; they
            find both under the same paths. The figures are those of one process, but for the order of addition.
        database: a new file that is to hold what the session makes, for other programs (see `Session.disconnect`). By
            default memory holds it.

    Raises:
        ConfigError: a limit that cannot be used; traces for a cluster that are not compacted.
        BackendUnavailableError: there is no such cluster, Ray is not installed, or its workers are lost.
        NotATraceError: a path holds no trace.
        TraceFormatError: a trace that this release cannot read.
        AlignmentError: two traces whose requests do not pair or whose prompts differ; names the first request.
        ConfigError: an unknown way to align.
        OutputExistsError: there is such a file.
    """
    first = a if isinstance(a, Trace) else Trace(a)
    second = b if isinstance(b, Trace) or b is None else Trace(b)
    pairing = Pairing(align, partial, any_tokenizer, policy, trainer_step)
    limits = Limits(memory_limit, threads, None if temp_dir is None else Path(temp_dir))
    measure = None
    if cluster is not None and second is not None:
        measure = _on_cluster(Comparing(first, second, pairing, limits), cluster, progress)
    return Session(
        first,
        second,
        pairing=pairing,
        tokenizer=None if tokenizer is None else Path(tokenizer),
        limits=limits,
        progress=progress,
        measure=measure,
        database=None if database is None else Path(database),
    )


def _on_cluster(comparing: Comparing, cluster: Cluster, progress: Callable[[float], None] | None) -> Measuring:
    try:
        from tracekit.analysis.spread import Spread
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"a comparison on a cluster needs Ray, which is not installed ({error}): pip install 'tracekit[ray]'"
        ) from error
    return Spread(comparing, cluster, progress)


def _opened(database: Path | None, config: dict[str, Any]) -> duckdb.DuckDBPyConnection:
    if database is None:
        return duckdb.connect(config=config)
    if database.exists():
        raise OutputExistsError(f"{database} exists; name a new file for the session's database")
    return duckdb.connect(str(database), config={**config, "storage_compatibility_version": _OLDEST})


def _limited(limits: Limits) -> dict[str, str | int]:
    # DuckDB makes this folder when memory runs out, and removes it when it closes.
    spill = Path(limits.temp_dir or tempfile.gettempdir(), f"tracekit-{uuid.uuid4().hex}").absolute()
    found: dict[str, str | int] = {"temp_directory": str(spill)}
    if limits.memory_limit is not None:
        found["memory_limit"] = limits.memory_limit.strip()
    if limits.threads is not None:
        found["threads"] = limits.threads
    return found


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
        query = f"SELECT run_id, request_id FROM requests WHERE (\n{condition}\n)"
        try:
            rows = session.sql(query).rows()
        except QueryError as error:
            in_a_line = " ".join(condition.split())
            raise QueryError(f"the condition '{in_a_line}' on requests is refused: {error}") from error
    return [(run_id, request_id) for run_id, request_id in rows]
