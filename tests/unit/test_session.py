"""Sessions: what they let through, what they keep out, and how they fail."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factories import make_request, make_trace
from tracekit import Session, connect
from tracekit.analysis import library, requests_where
from tracekit.errors import NotATraceError, OutputExistsError, QueryError, TraceFormatError

# Of metrics, without what tells where tokens diverge.
SUMS = library.COMPARISON_SUMS[:2]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trace(tmp_path_factory.mktemp("session") / "a")


@pytest.fixture(scope="module")
def session(trace: Path) -> Iterator[Session]:
    with connect(trace) as opened:
        yield opened


class TestStatements:
    @pytest.mark.parametrize(
        "query",
        [
            "SELECT count(*) FROM tokens",
            "FROM tokens",
            "WITH t AS (FROM tokens) SELECT * FROM t;",
            "VALUES (1)",
            "DESCRIBE tokens",
            "SHOW TABLES",
            "SUMMARIZE runs",
            "EXPLAIN SELECT 1",
            "EXPLAIN ANALYZE FROM tokens",
            "explain (analyze, format json) select 1",
            "PIVOT tokens ON token_id USING count(*)",
            "-- a comment\nSELECT 1",
        ],
    )
    def test_reading_ones_are_run(self, session: Session, query: str) -> None:
        assert session.sql(query).rows()

    @pytest.mark.parametrize(
        "query",
        [
            "COPY (SELECT 1) TO '{part}'",
            "COPY tokens TO '{part}' (FORMAT parquet)",
            "EXPLAIN ANALYZE COPY (SELECT 1) TO '{part}'",
            "EXPLAIN /* */ ANALYZE COPY (SELECT 1) TO '{part}'",
            "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{part}'",
            "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
            "COPY (PIVOT tokens ON token_id USING count(*)) TO '{part}'",
            "CREATE TABLE t AS PIVOT tokens ON token_id USING count(*)",
            "CREATE TABLE t (a INTEGER)",
            "CREATE OR REPLACE VIEW tokens AS SELECT 1",
            "CREATE MACRO f(x) AS x",
            "DROP VIEW tokens",
            "ALTER VIEW tokens RENAME TO t",
            "COMMENT ON VIEW tokens IS 'x'",
            "INSERT INTO _journal_tokens (run_id) VALUES ('x')",
            "UPDATE _journal_tokens SET run_id = 'x'",
            "DELETE FROM _journal_tokens",
            "WITH t AS (SELECT 1) DELETE FROM _journal_tokens",
            "ATTACH 'x.db'",
            "DETACH memory",
            "INSTALL httpfs",
            "LOAD httpfs",
            "SET threads = 1",
            "RESET threads",
            "SET VARIABLE x = 1",
            "PRAGMA enable_profiling",
            "PRAGMA database_list",
            "CALL pragma_version()",
            "EXPORT DATABASE 'x'",
            "IMPORT DATABASE 'x'",
            "BEGIN",
            "USE memory",
            "CHECKPOINT",
            "VACUUM",
            "PREPARE p AS SELECT 1",
            "EXECUTE p",
        ],
    )
    def test_others_are_refused(self, session: Session, trace: Path, query: str) -> None:
        part = trace / "tokens" / "w0-000000.parquet"
        before = part.read_bytes()
        with pytest.raises(QueryError, match=r"^[A-Z]+ is not run on a trace; only statements that read are run"):
            session.sql(query.format(part=part))
        assert part.read_bytes() == before

    @pytest.mark.parametrize(("query", "found"), [("", "no statement"), ("SELECT 1; COPY t TO 'x'", "2 statements")])
    def test_one_at_a_time(self, session: Session, query: str, found: str) -> None:
        with pytest.raises(QueryError, match=f"the query holds {found}; give one"):
            session.sql(query)


class TestIsolation:
    @pytest.mark.parametrize(
        "query",
        [
            "FROM read_text('{secret}')",
            "FROM read_blob('{secret}')",
            "FROM read_csv('{secret}')",
            "FROM '{secret}'",
            "FROM glob('{folder}/*')",
            "FROM sniff_csv('{secret}')",
            "FROM read_parquet('{folder}/a/*/*.parquet')",
            "FROM parquet_metadata('{secret}')",
            "FROM read_text('https://example.com/')",
        ],
    )
    def test_no_other_file_is_read(self, session: Session, trace: Path, query: str) -> None:
        secret = trace.parent / "secret.csv"
        secret.write_text("password\nhunter2\n")
        with pytest.raises(QueryError) as failure:
            session.sql(query.format(secret=secret, folder=trace.parent)).rows()
        assert "hunter2" not in str(failure.value)

    def test_variables_of_the_caller_are_no_tables(self, session: Session) -> None:
        secret = pa.table({"password": ["hunter2"]})
        with pytest.raises(QueryError, match="Table with name secret does not exist"):
            session.sql("FROM secret")
        assert secret.num_rows == 1

    def test_configuration_is_locked(self, session: Session) -> None:
        names = "'enable_external_access', 'lock_configuration', 'python_enable_replacements'"
        rows = session.sql(f"SELECT name, value FROM duckdb_settings() WHERE name IN ({names}) ORDER BY ALL").rows()
        assert rows == [
            ("enable_external_access", "false"),
            ("lock_configuration", "true"),
            ("python_enable_replacements", "false"),
        ]

    def test_only_listed_parts_count(self, tmp_path: Path) -> None:
        path = make_trace(tmp_path / "a")
        with connect(path) as opened:
            shutil.copy(path / "tokens" / "w0-000000.parquet", path / "tokens" / "w1-000000.parquet")
            assert opened.sql("SELECT count(*) FROM tokens").rows() == [(3,)]

    def test_columns_have_the_types_of_the_format_whatever_a_file_says(self, tmp_path: Path) -> None:
        path = make_trace(tmp_path / "a")
        part = path / "tokens" / "w0-000000.parquet"
        rows = pq.read_table(part)
        place = rows.schema.get_field_index("token_id")
        pq.write_table(rows.set_column(place, "token_id", pa.array(["10", "11", "12"])), part)
        with connect(path) as opened:
            assert opened.sql("SELECT token_id FROM tokens").schema.field("token_id").type == pa.int32()


def test_odd_paths(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s "odd" [a-c]* run=3 ; -- é?'
    folder.mkdir()
    a = make_trace(folder / "a'); DROP VIEW tokens; --")
    b = make_trace(folder / "b", role="replay", parent=a, run_id="other")
    with connect(a, b) as session:
        assert session.sql("SELECT count(*) FROM pairs").rows() == [(3,)]
        assert "run" not in session.sql("FROM a.tokens").columns


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_trace(tmp_path / "a")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with connect("../a") as session:
        monkeypatch.chdir(tmp_path)
        assert session.sql("SELECT count(*) FROM tokens").rows() == [(3,)]


class TestResult:
    def test_forms(self, session: Session) -> None:
        result = session.sql("SELECT $1 AS x, $2 AS y", [1, "b"])
        assert result.columns == ["x", "y"]
        assert result.rows() == [(1, "b")]
        assert result.dicts() == [{"x": 1, "y": "b"}]
        assert result.arrow().to_pydict() == {"x": [1], "y": ["b"]}
        assert [batch.num_rows for batch in result.batches()] == [1]

    def test_named_parameters(self, session: Session) -> None:
        assert session.sql("SELECT $x + 1", {"x": 2}).rows() == [(3,)]

    def test_stream_holds_a_batch_at_a_time(self, session: Session) -> None:
        sizes = [batch.num_rows for batch in session.sql("FROM range(300_000)").batches()]
        assert sum(sizes) == 300_000
        assert len(sizes) > 1

    def test_results_do_not_disturb_each_other(self, session: Session) -> None:
        first = session.sql("FROM range(200_000)").batches()
        next(first)
        assert session.sql("SELECT 1").rows() == [(1,)]
        assert sum(batch.num_rows for batch in first) > 0

    def test_empty(self, session: Session) -> None:
        assert session.sql("SELECT 1 AS x WHERE false").arrow().to_pydict() == {"x": []}


class TestQueryErrors:
    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("SELEC 1", 'Parser Error: syntax error at or near "SELEC"'),
            ("FROM tokns", r"Table with name tokns does not exist \(did you mean 'tokens'\?\)"),
            ("FROM qqqq", r"Table with name qqqq does not exist \(known: .*events, .*, tokens_all\)"),
            ("SELECT tokenid FROM tokens", r'Referenced column "tokenid" not found .* Candidate bindings: "token_id"'),
            ("SELECT 1\nFROM FROM tokens", r"syntax error .* \(line 2\)$"),
            ("SELECT error('boom')", "boom"),
            ("SELECT 'x'::INTEGER", "Conversion Error"),
            ("SELECT $1", "parameter"),
        ],
    )
    def test_one_line_in_duckdbs_words(self, session: Session, query: str, message: str) -> None:
        with pytest.raises(QueryError, match=message) as failure:
            session.sql(query).rows()
        assert "\n" not in str(failure.value)

    def test_views_of_two_traces_need_their_schema(self, trace: Path) -> None:
        with connect(trace, trace) as session, pytest.raises(QueryError, match=r"did you mean 'a\.tokens'\?"):
            session.sql("FROM tokens")


class TestDamage:
    @pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(1000), b"not parquet at all, but long enough"])
    def test_a_file_that_is_no_parquet_is_named(self, tmp_path: Path, content: bytes) -> None:
        path = make_trace(tmp_path / "a")
        part = path / "tokens" / "w0-000000.parquet"
        part.write_bytes(content)
        with pytest.raises(TraceFormatError, match="cannot be read as a Parquet part") as failure:
            connect(path)
        assert str(failure.value).startswith(str(part))
        assert "\n" not in str(failure.value)

    def test_a_file_cut_while_open_is_named(self, tmp_path: Path) -> None:
        path = make_trace(tmp_path / "a", requests=[make_request(token_ids=range(1000))])
        part = path / "tokens" / "w0-000000.parquet"
        with connect(path) as session:
            part.write_bytes(part.read_bytes()[:200])
            with pytest.raises(TraceFormatError, match=r"w0-000000\.parquet cannot be read"):
                session.sql("FROM tokens").rows()

    def test_a_damaged_page_is_named(self, tmp_path: Path) -> None:
        path = make_trace(tmp_path / "a", requests=[make_request(token_ids=range(1000))])
        part = path / "tokens" / "w0-000000.parquet"
        column = pq.read_metadata(part).row_group(0).column(1)
        content = bytearray(part.read_bytes())
        start = column.dictionary_page_offset
        content[start : start + 8] = b"\xff" * 8
        part.write_bytes(content)
        with connect(path) as session, pytest.raises(TraceFormatError, match=r"w0-000000\.parquet cannot be read"):
            session.sql("SELECT request_id FROM tokens_all").rows()

    def test_a_table_without_parts_is_empty(self, tmp_path: Path) -> None:
        path = make_trace(tmp_path / "a")
        shutil.rmtree(path / "routes")
        with connect(path) as session:
            assert session.sql("FROM routes").rows() == []


@pytest.mark.parametrize("content", ["nothing", "empty folder", "file", "future"])
def test_what_is_no_trace(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x"
    if content == "empty folder":
        path.mkdir()
    elif content == "file":
        path.write_text("x")
    elif content == "future":
        make_trace(path)
        manifest = (path / "manifest.json").read_text().replace('"1.2"', '"2.0"')
        (path / "manifest.json").write_text(manifest)
    error = TraceFormatError if content == "future" else NotATraceError
    with pytest.raises(error, match=str(path)):
        connect(path)


def test_requests_of_a_condition(tmp_path: Path) -> None:
    requests = [make_request("cold", temperature=0.0), make_request("warm"), make_request("hot", temperature=1.5)]
    trace = make_trace(tmp_path / "t", requests=requests)
    assert requests_where(trace, "temperature > 0.5 AND request_id <> 'hot'") == [("run", "warm")]
    assert requests_where(trace, "temperature = 0 -- as the gate wants it") == [("run", "cold")]
    assert requests_where(trace, "request_id IN (SELECT request_id FROM tokens WHERE temperature > 1)") == [
        ("run", "hot")
    ]
    assert requests_where(trace, "false") == []
    for condition in ("temprature = 0", "true; DROP VIEW requests", ""):
        with pytest.raises(QueryError, match=f"the condition '{condition}' on requests is refused: "):
            requests_where(trace, condition)


class TestDatabase:
    def test_it_holds_what_a_session_has(self, tmp_path: Path) -> None:
        """Journal rows too; and an odd path. Whoever opens it needs nothing of tracekit."""
        a = make_trace(tmp_path / "it's a", requests=[make_request(logprob=-0.5)])
        b = make_trace(tmp_path / "b", requests=[make_request(logprob=-0.75)], role="replay", parent=a, sealed=False)
        file = tmp_path / "pair.duckdb"
        with connect(a, b, database=file) as session:
            expected = session.sql("FROM metric_intervals").rows()
            session.disconnect()
            with duckdb.connect(str(file), read_only=True) as plain:
                assert plain.sql("SELECT count(*), sum(d) FROM pairs").fetchall() == [(3, -0.75)]
                assert plain.sql("FROM metric_intervals").fetchall() == expected
                ((comment,),) = plain.sql("SELECT comment FROM duckdb_views() WHERE view_name = 'pairs'").fetchall()
                assert comment.startswith("Positions that both traces delivered")

    def test_a_file_that_exists_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "taken"
        file.write_text("mine")
        with pytest.raises(OutputExistsError, match=r"taken exists; name a new file"):
            connect(make_trace(tmp_path / "a"), database=file)
        assert file.read_text() == "mine"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the modules that a session loads after it was opened."""
    loaded: list[str] = []
    load = library.load

    def noting(connection: duckdb.DuckDBPyConnection, steps: tuple[str, ...]) -> None:
        loaded.extend(steps)
        load(connection, steps)

    monkeypatch.setattr("tracekit.analysis.pending.library", SimpleNamespace(**vars(library) | {"load": noting}))
    return loaded


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        (["SELECT count(*) FROM pairs", "SELECT count(*) FROM a.tokens"], []),
        (["SELECT count(*) FROM Flips", "FROM flips"], ["alignment/flips"]),
        (['FROM "metrics"'], [*SUMS, "metrics/metrics"]),
        (["SELECT d FROM pairs ORDER BY d DESC"], []),
        (["FROM metric_intervals"], [*SUMS, "metrics/metrics", "metrics/intervals"]),
        (["FROM first_divergence"], [*library.COMPARISON_SUMS, "alignment/divergence"]),
        (["FROM explained"], ["explain/explained"]),
        (["SELECT count(*) FROM b.token_classes"], ["tokens/classes", "tokens/classes"]),
    ],
)
def test_a_statement_loads_what_it_names(
    tmp_path: Path, loads: list[str], queries: list[str], expected: list[str]
) -> None:
    run = make_trace(tmp_path / "run", requests=[make_request()])
    with connect(run, make_trace(tmp_path / "fp32", role="replay", parent=run, run_id="b")) as session:
        for query in queries:
            session.sql(query).rows()
    assert loads == expected


@pytest.mark.parametrize(
    "query",
    [
        "SHOW TABLES",
        "/* all */ describe",
        "FROM (SHOW TABLES)",
        "SELECT view_name FROM duckdb_views()",
        "FROM query('FROM fl' || 'ips')",
    ],
)
def test_what_may_name_anything_loads_everything(tmp_path: Path, loads: list[str], query: str) -> None:
    run = make_trace(tmp_path / "run", requests=[make_request()])
    with connect(run, make_trace(tmp_path / "fp32", role="replay", parent=run, run_id="b")) as session:
        session.sql(query).rows()
    assert loads == [*library.TRACE_VIEWS, *library.TRACE_VIEWS, *library.COMPARISON_SUMS, *library.COMPARISON_VIEWS]


@pytest.mark.parametrize("loaded", [False, True])
def test_an_interruption_while_the_library_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: bool) -> None:
    """Ctrl-C may come when a part of the library is loaded already: it must not be loaded twice, nor be left out."""
    run = make_trace(tmp_path / "run", requests=[make_request()])
    fp32 = make_trace(tmp_path / "fp32", requests=[make_request()], role="replay", parent=run, run_id="b")
    interrupted_parts = 0
    for part in itertools.count():
        calls = itertools.count()

        def interrupted(_connection: object, call: Callable[[], None], *_: object) -> None:
            last = next(calls) == part  # noqa: B023
            if loaded or not last:
                call()
            if last:
                raise KeyboardInterrupt

        with connect(run, fp32) as session:
            with monkeypatch.context() as patch:
                patch.setattr("tracekit.analysis.session.interruptible", interrupted)
                try:
                    session.views()
                except KeyboardInterrupt:
                    interrupted_parts += 1
                else:
                    break
            assert {"pairs", "flips", "a.tokens", "a.token_classes"} <= set(session.views())
            assert session.sql("SELECT 6 * 7").rows() == [(42,)]
    assert interrupted_parts > 2
