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
    tables = sorted([*schema.table_names(), "tokens_all"])
    both = [f"{side}.{table}" for side in "ab" for table in tables]
    with opened(tmp_path, 1) as session:
        assert session.views() == tables
    with connect(tmp_path / "a", tmp_path / "a") as session:
        assert sorted(session.views()) == sorted(
            [*both, "first_divergence", "flips", "metrics", "pair_batches", "pairs"]
        )


def test_column_comments_are_the_formats_own(tmp_path: Path) -> None:
    with opened(tmp_path, 2) as session:
        comments = {(row[0], row[1], row[2]): row[3] for row in session.sql(COLUMNS).rows()}
    logprob = "Raw logprob of the token: logit - logsumexp. Unit: nat."
    assert comments["a", "tokens", "logprob"] == comments["b", "tokens_all", "logprob"] == logprob
    assert comments["main", "pairs", "b_logprob"] == f"B: {logprob}"


def all_modules() -> list[str]:
    root = resources.files("tracekit.analysis").joinpath("sql")
    with resources.as_file(root) as folder:
        return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.sql"))


def test_every_module_is_loaded() -> None:
    stages = (
        library.TRACE,
        library.ARITHMETIC,
        library.VOCABULARY,
        library.MATCHING,
        library.PROOF,
        library.OBJECTIONS,
        library.COMPARISON,
    )
    loaded = [name for stage in stages for name in stage]
    assert sorted([*loaded, "prelude/source", "prelude/source_journal"]) == all_modules()


@pytest.mark.parametrize("name", all_modules())
def test_modules_make_views_and_macros_only(name: str) -> None:
    text = library.module(name).replace("$table", "x").replace("$columns", "y").replace("$files", "[]")
    for statement in duckdb.connect().extract_statements(text):
        sql = re.sub(r"^(\s*--[^\n]*\n|\s)*", "", statement.query)
        assert re.match(r"CREATE (VIEW|MACRO) |COMMENT ON (VIEW|COLUMN|MACRO) ", sql), sql
