"""The exported SQL library, run by a DuckDB that has no tracekit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from factories import MadeRequest, make_request, make_trace
from tracekit import TraceWriter, connect
from tracekit.analysis.export import exported
from tracekit.cli.main import main
from tracekit.errors import AlignmentError

GOLDEN = Path(__file__).parents[1] / "golden" / "v1.0" / "trace"

# Reads {"variables": …, "library": path, "queries": […]} and prints what the queries give, or the first error.
PROGRAM = """
import json, sys
import duckdb
job = json.load(sys.stdin)
connection = duckdb.connect(job.get("database", ":memory:"))
for name, value in job["variables"].items():
    connection.execute(f"SET VARIABLE {name} = $1", [value])
try:
    connection.execute(open(job["library"], encoding="utf-8").read())
    rows = [connection.execute(query).fetchall() for query in job["queries"]]
    print(json.dumps({"rows": rows}, default=str))
except duckdb.Error as error:
    print(json.dumps({"error": str(error)}))
assert not any(name.split(".")[0] == "tracekit" for name in sys.modules)
"""
FIGURES = "SELECT value, largest FROM metrics ORDER BY basis, name"
COMMENTS = [
    "SELECT schema_name, view_name, comment FROM duckdb_views() WHERE NOT internal AND view_name[1] <> '_' "
    "ORDER BY ALL",
    "SELECT schema_name, table_name, column_name, data_type, comment FROM duckdb_columns() "
    "WHERE NOT internal AND table_name[1] <> '_' ORDER BY ALL",
    "SELECT function_name, parameters, comment FROM duckdb_functions() WHERE NOT internal AND function_name[1] <> '_' "
    "ORDER BY ALL",
]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The exported files for one and for two traces."""
    folder = tmp_path_factory.mktemp("exported")
    one, two = folder / "one.sql", folder / "two.sql"
    assert main(["sql", "--export", "--one", "-o", str(one)]) == 0
    assert main(["sql", "--export", "-o", str(two)]) == 0
    return one, two


class Plain:
    """Runs queries in a process of its own, where tracekit is not importable."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # A path that is not the checkout's, and `-I`: neither PYTHONPATH nor the current folder is searched.
        folder.mkdir(exist_ok=True)

    def run(self, library: Path, *queries: str, **variables: Any) -> dict[str, Any]:
        values = {name: str(value) if isinstance(value, Path) else value for name, value in variables.items()}
        job = json.dumps({"library": str(library), "variables": values, "queries": queries})
        command = [sys.executable, "-I", "-c", PROGRAM]
        done = subprocess.run(command, input=job, capture_output=True, text=True, cwd=self._folder, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        # DuckDB shows a bar before it, of what takes more than two seconds.
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def rows(self, library: Path, *queries: str, **variables: Any) -> list[list[Any]]:
        found = self.run(library, *queries, **variables)
        assert "error" not in found, found["error"]
        rows: list[list[Any]] = found["rows"]
        return rows

    def error(self, library: Path, **variables: Any) -> str:
        return str(self.run(library, "SELECT 1", **variables)["error"])


@pytest.fixture
def plain(tmp_path: Path) -> Plain:
    return Plain(tmp_path / "elsewhere")


def as_json(rows: list[tuple[Any, ...]]) -> list[Any]:
    return list(json.loads(json.dumps(rows, default=str)))


def pair(folder: Path) -> tuple[Path, Path]:
    """A recording in two runs' parts and a replay of a part of it, with a fork and unequal figures."""
    a = [
        make_request("r0", token_ids=range(50), logprob=[-0.01 * i for i in range(50)]),
        make_request("r1", prompt=[7], token_ids=[4, 5, 6], temperature=0.0),
        make_request("r2", prompt=[8], token_ids=[4]),
    ]
    b = [
        make_request("r0", token_ids=range(50), logprob=[-0.011 * i for i in range(50)], forced=True),
        make_request("r1", prompt=[7], token_ids=[4, 9, 6], temperature=0.0),
    ]
    parent = make_trace(folder / "it's a.trace", requests=a, steps=[{"request_ids": [["r0"]], "num_requests": 1}])
    with TraceWriter(parent, run_id="run", writer="w-1") as writer:
        writer.append("requests", {"request_id": "r0", "external_id": "late", "temperature": 0.8})
    options = {"run_id": "b", "run": {"options": '{"limit": 2}'}}
    return parent, make_trace(folder / "b.trace", requests=b, role="replay", parent=parent, **options)


def test_it_gives_what_a_session_gives(tmp_path: Path, libraries: tuple[Path, Path], plain: Plain) -> None:
    a, b = pair(tmp_path)
    queries = [
        "FROM first_divergence",
        "SELECT * EXCLUDE (value, largest) FROM metrics",
        "SELECT * FROM pairs ORDER BY request_id, output_index",
        "FROM aligned ORDER BY ALL",
        "FROM unaligned",
        "FROM a.requests ORDER BY request_id",
        "SELECT * FROM b.tokens ORDER BY request_id, output_index",
        *COMMENTS,
    ]
    with connect(a, b) as session:
        expected = [as_json(session.sql(query).rows()) for query in queries]
        figures = session.sql(FIGURES).rows()
    *found, found_figures = plain.rows(libraries[1], *queries, FIGURES, a=a, b=b)
    assert found == expected
    assert len(expected[1]) > 10
    assert len(expected[2]) == 52
    # Sums are not always added up in one order.
    for row, of_session in zip(found_figures, figures, strict=True):
        assert [figure is None for figure in row] == [figure is None for figure in of_session]
        assert [figure or 0.0 for figure in row] == pytest.approx([figure or 0.0 for figure in of_session], rel=1e-12)


def test_one_trace(tmp_path: Path, libraries: tuple[Path, Path], plain: Plain) -> None:
    a, _ = pair(tmp_path)
    queries = ["FROM requests ORDER BY request_id", "SELECT * FROM tokens ORDER BY request_id, output_index", *COMMENTS]
    with connect(a) as session:
        expected = [as_json(session.sql(query).rows()) for query in queries]
    assert plain.rows(libraries[0], *queries, a=f"{a}/") == expected


@pytest.mark.parametrize("recovered", [False, True])
def test_parts_of_an_older_version(tmp_path: Path, libraries: tuple[Path, Path], plain: Plain, recovered: bool) -> None:
    """Columns that they do not have are null, also beside parts of this version, as recovery makes them."""
    path = tmp_path / "golden"
    shutil.copytree(GOLDEN, path)
    if recovered:
        assert main(["recover", str(path)]) == 0
    else:
        shutil.rmtree(path / "journal")
    assert "num_threads" not in pq.read_schema(path / "runs" / "empty-000000.parquet").names
    queries = ["SELECT count(*), count(num_threads) FROM runs", "SELECT * FROM tokens ORDER BY ALL"]
    runs, tokens = plain.rows(libraries[0], *queries, a=path)
    assert runs[0][0] > 0
    assert runs[0][1] == 0
    with connect(path) as session:
        assert as_json(session.sql(queries[1]).rows()) == tokens


def test_a_table_that_the_trace_does_not_have(tmp_path: Path, libraries: tuple[Path, Path], plain: Plain) -> None:
    path = make_trace(tmp_path / "a")
    shutil.rmtree(path / "routes")
    assert plain.rows(libraries[0], "FROM routes", "SELECT count(*) FROM tokens", a=path) == [[], [[3]]]


def test_other_files_are_ignored(tmp_path: Path, libraries: tuple[Path, Path], plain: Plain) -> None:
    path = make_trace(tmp_path / "a")
    part = path / "tokens" / "w0-000000.parquet"
    for name in (".w1-000000.parquet", "notes.parquet", "w1-0.parquet", "w1_000000.parquet"):
        shutil.copy(part, part.with_name(name))
    assert plain.rows(libraries[0], "SELECT count(*) FROM tokens", a=path) == [[[3]]]


def test_other_traces_may_follow(tmp_path: Path, libraries: tuple[Path, Path], plain: Plain) -> None:
    """The file may be read again; what was compared before is gone, also where the new traces are refused."""
    a, b = pair(tmp_path)
    again = tmp_path / "again.sql"
    text = libraries[1].read_text()
    again.write_text(f"{text}\nSET VARIABLE b = getvariable('a');\n{text}")
    assert plain.rows(again, "SELECT count(*), sum(abs(d)) FROM pairs", a=a, b=b) == [[[54, 0.0]]]


class TestRefused:
    def test_no_variable(self, tmp_path: Path, libraries: tuple[Path, Path], plain: Plain) -> None:
        a = make_trace(tmp_path / "a")
        assert "the variable a is not set: SET VARIABLE a = " in plain.error(libraries[0])
        assert "the variable b is not set: SET VARIABLE b = " in plain.error(libraries[1], a=a)

    def test_no_trace(self, tmp_path: Path, libraries: tuple[Path, Path], plain: Plain) -> None:
        message = plain.error(libraries[0], a=tmp_path)
        assert f"{tmp_path} is no trace: it holds no manifest.json; set the variable a to the folder of one" in message

    def test_journals(self, tmp_path: Path, libraries: tuple[Path, Path], plain: Plain) -> None:
        path = make_trace(tmp_path / "a", sealed=False)
        message = plain.error(libraries[0], a=path)
        assert f"{path} has rows in 4 journal(s), first " in message
        assert f"which this does not read; run `tracekit recover {path}` first" in message
        assert main(["recover", str(path)]) == 0
        assert plain.rows(libraries[0], "SELECT count(*) FROM tokens", a=path) == [[[3]]]

    def test_a_journal_that_a_part_replaced(self, tmp_path: Path, libraries: tuple[Path, Path], plain: Plain) -> None:
        path = make_trace(tmp_path / "a")
        (path / "journal" / "tokens" / "w0-000000.arrows.zst").write_bytes(b"")
        assert plain.rows(libraries[0], "SELECT count(*) FROM tokens", a=path) == [[[3]]]

    @pytest.mark.parametrize(("version", "named"), [("2.0", "2.0"), ("11.0", "11.0"), (None, "unknown")])
    def test_another_major_version(
        self, tmp_path: Path, libraries: tuple[Path, Path], plain: Plain, version: str | None, named: str
    ) -> None:
        path = make_trace(tmp_path / "a")
        manifest = json.loads((path / "manifest.json").read_text()) | {"format_version": version}
        (path / "manifest.json").write_text(json.dumps(manifest))
        message = plain.error(libraries[0], a=path)
        assert f"{path} has trace format {named}, this library reads 1.x; export it with another tracekit" in message

    def test_what_does_not_align(self, tmp_path: Path, libraries: tuple[Path, Path], plain: Plain) -> None:
        def trace(name: str, requests: list[MadeRequest]) -> Path:
            return make_trace(tmp_path / name, requests=requests, run_id=name)

        a = trace("a", [make_request("x", prompt=[1]), make_request("y", prompt=[2])])
        b = trace("b", [make_request("x", prompt=[2]), make_request("y", prompt=[1])])
        with pytest.raises(AlignmentError) as failure:
            connect(a, b, align="request")
        assert str(failure.value) in plain.error(libraries[1], a=a, b=b, align="request")
        assert plain.rows(libraries[1], "SELECT count(*) FROM aligned", a=a, b=b, align="prompt") == [[[2]]]
        c = trace("c", [make_request("x", prompt=[1])])
        assert "has no counterpart by prompt" in plain.error(libraries[1], a=a, b=c)
        assert plain.rows(libraries[1], "SELECT count(*) FROM aligned", a=a, b=c, partial=True) == [[[1]]]
        assert "no alignment 'promt'" in plain.error(libraries[1], a=a, b=c, align="promt")


def test_it_makes_nothing_but_what_may_be_made_again(libraries: tuple[Path, Path]) -> None:
    made = re.compile(
        r"CREATE OR REPLACE (VIEW|TABLE|MACRO) |CREATE SCHEMA IF NOT EXISTS |COMMENT ON |SET VARIABLE |USE "
        r"|DROP TABLE IF EXISTS _aligned|SET parquet_metadata_cache"
    )
    for library in libraries:
        for statement in duckdb.extract_statements(library.read_text()):
            text = re.sub(r"^(\s*--[^\n]*\n|\s)*", "", statement.query)
            assert made.match(text), text


def test_the_library_is_the_same_each_time() -> None:
    assert exported() == exported(2)
    assert "CREATE VIEW" not in exported(1)
