"""The SQL standard library: documented whole, and made of views and macros only."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import duckdb
import pytest

from factories import make_trace
from tracekit import Session, connect, schema
from tracekit.analysis import library
from tracekit.analysis.reference import Entry, entries
from tracekit.cli.main import main

COLUMNS = "SELECT schema_name, table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal"
VIEWS = "SELECT schema_name, view_name, comment FROM duckdb_views() WHERE NOT internal"
MACROS = "SELECT schema_name, function_name, comment FROM duckdb_functions() WHERE NOT internal"


def opened(folder: Path, num_traces: int) -> Session:
    a = make_trace(folder / "a")
    return connect(a) if num_traces == 1 else connect(a, make_trace(folder / "b", role="replay", parent=a, run_id="b"))


@pytest.mark.parametrize("num_traces", [1, 2])
@pytest.mark.parametrize("query", [VIEWS, COLUMNS, MACROS])
def test_every_public_object_has_a_comment(tmp_path: Path, num_traces: int, query: str) -> None:
    with opened(tmp_path, num_traces) as session:
        public = [row for row in session.sql(query).rows() if not row[1].startswith("_")]
    assert public
    assert [row[:-1] for row in public if not row[-1]] == []


def test_public_views(tmp_path: Path) -> None:
    tables = {*schema.table_names(), "tokens_all"}
    with opened(tmp_path, 1) as session:
        assert set(session.views()) >= tables
        assert "pairs" not in session.views()
    with connect(tmp_path / "a", tmp_path / "a") as session:
        assert set(session.views()) >= {f"{side}.{table}" for side in "ab" for table in tables}
        assert set(session.views()) >= {"aligned", "first_divergence", "metrics", "pairs", "unaligned"}


def test_column_comments_are_the_formats_own(tmp_path: Path) -> None:
    with opened(tmp_path, 2) as session:
        comments = {(row[0], row[1], row[2]): row[3] for row in session.sql(COLUMNS).rows()}
    logprob = "Raw logprob of the token: logit - logsumexp. Unit: nat."
    assert comments["a", "tokens", "logprob"] == comments["b", "tokens_all", "logprob"] == logprob
    assert comments["main", "pairs", "b_logprob"] == f"B: {logprob}"


def all_modules() -> list[str]:
    root = resources.files("tracekit.analysis").joinpath("sql")
    with resources.as_file(root) as folder:
        names = [str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.sql")]
    return sorted(name for name in names if not name.startswith("metrics/catalogue/"))


def test_every_module_is_loaded() -> None:
    stages = (
        library.MACROS,
        library.FILES,
        library.TRACE,
        library.SIDE,
        library.PAIR,
        library.COMPARISON,
        library.EXPLANATION,
        library.VOCABULARY,
        library.TEMPLATES,
    )
    either = [step for stage in stages for step in stage if isinstance(step, library.Either)]
    either += [step.quick for step in either if isinstance(step.quick, library.Either)]
    quick = [name for step in either for name in (step.quick, step.general) if isinstance(name, str)]
    # It shares its file with metrics/sums.
    quick.remove("metrics/sums_untrained")
    assert sorted({*(name for stage in stages for name in library.modules(stage)), *quick}) == all_modules()


def test_modules_make_views_and_macros_only() -> None:
    stages = (library.MACROS, library.TRACE, library.SIDE, library.PAIR, library.COMPARISON, library.EXPLANATION)
    for name in [name for stage in (*stages, library.VOCABULARY) for name in library.modules(stage)]:
        for statement in duckdb.extract_statements(library.module(name)):
            sql = re.sub(r"^(\s*--[^\n]*\n|\s)*", "", statement.query)
            assert re.match(r"CREATE (VIEW|MACRO) |COMMENT ON (VIEW|COLUMN|MACRO|MACRO TABLE) ", sql), (name, sql)


def test_reference_is_complete(tmp_path: Path) -> None:
    """It knows what sessions show, and no more, tokenizer's objects apart."""
    known = entries()
    with opened(tmp_path, 2) as session:
        views = {view for view in session.views() if not view.startswith("b.")}
        macros = {row[1] for row in session.sql(MACROS).rows() if not row[1].startswith("_")}
    shown = {f"a.{entry.name}" if entry.scope == "trace" else entry.name for entry in known if entry.kind == "view"}
    assert shown - {"vocabulary"} == views
    assert {entry.name for entry in known if entry.kind != "view"} - {"token_text", "token_texts"} == macros
    for entry in known:
        assert entry.comment, entry.name
        assert all(column.comment for column in entry.columns), entry.name
        assert bool(entry.columns) == (entry.kind == "view"), entry.name
        assert entry.definition.startswith(("CREATE VIEW ", "CREATE MACRO ")), entry.name
    assert len({entry.name for entry in known}) == len(known)


def test_examples_run(tmp_path: Path) -> None:
    a = make_trace(tmp_path / "a")
    b = make_trace(tmp_path / "b", role="replay", parent=a, run_id="b")
    examples = [(entry, entry.example) for entry in entries() if entry.example is not None]
    assert len(examples) > 10

    def run(session: Session, of_trace: bool) -> None:
        for entry, example in examples:
            if (entry.scope == "trace") == of_trace:
                assert _uses(example, entry), entry.name
                assert session.sql(example).columns

    with connect(a) as session:
        run(session, True)
    with connect(a, b) as session:
        run(session, False)


def _uses(example: str, entry: Entry) -> bool:
    return re.search(rf"\b{entry.name}\b", example) is not None


def test_the_command_lists_and_explains(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["sql"]) == 0
    listed = capfdbinary.readouterr().out.decode()
    for entry in entries():
        assert f" {entry.call} " in listed
    assert main(["sql", "b.tokens", "--definition"]) == 0
    explained = capfdbinary.readouterr().out.decode()
    assert explained.startswith(
        "tokens: view of prelude/tables, of one trace; with two, each has its own: a.tokens and b."
    )
    assert " logprob " in explained
    assert "\nExample:\n  SELECT " in explained
    assert "\nCREATE VIEW tokens AS\nSELECT t.*\n" in explained
    assert main(["sql", "first_divergance"]) == 2
    assert b"no view or macro 'first_divergance' (did you mean 'first_divergence'?)" in capfdbinary.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--one"], ["--definition"], ["pairs", "--export"], ["--export", "--definition"]]
)
def test_options_that_mean_nothing(arguments: list[str]) -> None:
    assert main(["sql", *arguments]) == 2
