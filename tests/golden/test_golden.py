"""Traces of released format versions: every later release must read them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tracekit.schema import table_names
from tracekit.store import Trace, recover

VERSIONS = sorted(path for path in Path(__file__).parent.iterdir() if (path / "trace.json").exists())


def twin(version: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((version / "trace.json").read_text(encoding="utf-8"))
    return content


def readable(value: Any) -> Any:
    """Writes infinities as the twin does."""
    if isinstance(value, dict):
        return {key: readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [readable(item) for item in value]
    return str(value) if value in (float("inf"), float("-inf")) else value


def expected_rows(version: Path, table: str) -> list[dict[str, Any]]:
    """The twin's rows; columns of later versions are null."""
    rows: list[dict[str, Any]] = twin(version)["tables"].get(table, [])
    columns = Trace(version / "trace").read(table).column_names
    return [{column: row.get(column) for column in columns} for row in rows]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
class TestGolden:
    def test_manifest(self, version: Path) -> None:
        assert asdict(Trace(version / "trace").manifest) == twin(version)["manifest"]

    def test_every_table_equals_its_twin(self, version: Path) -> None:
        trace = Trace(version / "trace")
        assert twin(version)["tables"].keys() <= set(table_names())
        for table in table_names():
            expected = expected_rows(version, table)
            assert readable(trace.read(table).to_pylist()) == expected, table
            assert trace.num_rows(table) == len(expected)

    def test_a_killed_writers_journal_is_part_of_it(self, version: Path) -> None:
        tokens = twin(version)["tables"]["tokens"]
        assert Trace(version / "trace").snapshot("tokens").journal_rows.num_rows == 1
        assert len(tokens) == 3

    def test_recovered_copy_equals_its_twin(self, version: Path, tmp_path: Path) -> None:
        copy = tmp_path / "trace"
        shutil.copytree(version / "trace", copy)
        assert recover(copy) == {"tokens": 1}
        assert Trace(copy).snapshot("tokens").journal_rows.num_rows == 0
        assert readable(Trace(copy).read("tokens").to_pylist()) == expected_rows(version, "tokens")

    def test_parts_need_no_code_of_tracekit(self, version: Path) -> None:
        for table, rows in twin(version)["tables"].items():
            files = f"{version}/trace/{table}/*.parquet"
            relation = duckdb.sql("SELECT * FROM read_parquet($files, filename = true)", params={"files": files})
            found = [dict(zip(relation.columns, row, strict=True)) for row in relation.order("filename").fetchall()]
            for row in found:
                del row["filename"]
            assert readable(found) == rows[: len(found)], table
            assert len(found) == 2
