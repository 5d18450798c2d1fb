"""Formats of rows: the registry, Markdown, and tables that are wider than the terminal."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import BinaryIO

import pyarrow as pa
import pytest

from tracekit.errors import ConfigError
from tracekit.report.formats import base, table
from tracekit.report.formats.base import Rows, TableRows, format_names, writer


def written(name: str, content: pa.Table) -> str:
    sink = io.BytesIO()
    writer(name)(TableRows(content), sink)
    return sink.getvalue().decode()


class TestRegistry:
    def test_formats_in_the_order_of_help(self) -> None:
        assert format_names() == ["table", "csv", "json", "parquet", "md"]

    def test_an_unknown_format_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"no format 'jsn' \(did you mean 'json'\?\)"):
            writer("jsn")

    def test_another_package_may_bring_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        point = EntryPoint("count", f"{__name__}:write_count", base.ENTRY_POINTS)
        monkeypatch.setattr(base, "entry_points", lambda group: [point] if group == base.ENTRY_POINTS else [])
        assert format_names()[-1] == "count"
        assert written("count", pa.table({"x": [1, 2, 3]})) == "3"

    def test_names_are_found_without_loading_a_format(self) -> None:
        program = (
            "import sys; from tracekit.report.formats.base import format_names; format_names(); "
            "print(sorted({'pyarrow', 'rich', 'duckdb'} & set(sys.modules)))"
        )
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert (run.stdout, run.stderr) == ("[]\n", "")


def write_count(rows: Rows, sink: BinaryIO) -> None:
    sink.write(str(sum(batch.num_rows for batch in rows.batches())).encode())


class TestMarkdown:
    def test_a_table(self) -> None:
        content = pa.table({"name": ["kl", None], "value": [0.25, -1e-7], "list": [[1.5, None], []]})
        assert written("md", content) == (
            "| name | value | list |\n| --- | ---: | --- |\n| kl | 0.25 | \\[1.5, -\\] |\n| - | -1e-07 | \\[\\] |\n"
        )

    def test_text_of_a_trace_stays_text(self) -> None:
        evil = ["a|b", "<b>", "[x](http://y)", "`c`", "*d*", "e\nf", "\\|"]
        lines = written("md", pa.table({"t": evil})).splitlines()[2:]
        cells = ["a\\|b", "&lt;b>", "\\[x\\](http://y)", "\\`c\\`", "\\*d\\*", "e\\\\nf", "\\\\\\|"]
        assert lines == [f"| {cell} |" for cell in cells]


class TestTable:
    """A line is never wider than the terminal, and figures are never broken."""

    WIDE = pa.table({"id": ["r1"], "text": ["lorem ipsum " * 9], "d": [-0.1234567], "n": [1234567890]})

    def laid_out(self, content: pa.Table, width: int | None) -> list[str]:
        rows = [["-" if v is None else str(v) for v in row.values()] for row in content.to_pylist()]
        text = table.lay_out(content.schema, rows, width).decode()
        return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in text.splitlines()]

    def test_nothing_is_broken_into_a_pipe(self) -> None:
        lines = self.laid_out(self.WIDE, None)
        assert len(lines) == 3
        assert "lorem ipsum " * 8 in lines[2]

    def test_texts_are_folded_where_that_suffices(self) -> None:
        lines = self.laid_out(self.WIDE, 70)
        assert lines[0].split() == ["id", "text", "d", "n"]
        assert lines[2].split()[-2:] == ["-0.1234567", "1234567890"]
        assert max(map(len, lines)) <= 70
        assert sum(line.count("lorem") for line in lines) == 9

    def test_rows_that_do_not_fit_become_records(self) -> None:
        content = pa.table({f"column_{i}": [float(i), i + 0.5] for i in range(30)})
        lines = self.laid_out(content, 60)
        assert max(map(len, lines)) <= 60
        pairs = [line.split() for line in lines if line.strip().startswith("column_")]
        expected = [[f"column_{i}", str(i + add)] for add in (0.0, 0.5) for i in range(30)]
        assert pairs == expected
        assert [line.strip() for line in lines if line.strip().startswith("row")] == ["row 1", "row 2"]

    def test_columns_that_do_not_fit_are_listed_without_rows_too(self) -> None:
        content = pa.table({f"column_{i}": pa.array([], pa.int32()) for i in range(30)})
        lines = [line.strip() for line in self.laid_out(content, 60)]
        assert lines[0] == "no row"
        assert lines[2:] == [f"column_{i}" for i in range(30)]
