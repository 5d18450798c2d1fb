"""How part files are named to DuckDB: any mix of them gives all rows, in plans that know how many there are."""

from __future__ import annotations

import random
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tracekit import connect
from tracekit.analysis import library
from tracekit.analysis.parts import arranged
from tracekit.schema import arrow_schema
from tracekit.store import TraceWriter, create_trace


@pytest.fixture
def connection() -> duckdb.DuckDBPyConnection:
    found = duckdb.connect()
    library.load(found, library.FILES)
    return found


def written(folder: Path, sizes: list[int], other: int | None = None) -> list[Path]:
    """Writes files of so many rows; the one at `other` has a column more."""
    paths = []
    for number, size in enumerate(sizes):
        columns = {"x": list(range(size)), **({"y": list(range(size))} if number == other else {})}
        paths.append(folder / f"{number}.parquet")
        pq.write_table(pa.table(columns, pa.schema([(name, pa.int64()) for name in columns])), paths[-1])
    return paths


class TestArranged:
    def test_equal_files_are_not_looked_into(self, connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
        files = written(tmp_path, [0, 10, 11, 9])
        found = arranged(connection, files, in_order=True)
        assert (found.files, found.union) == ((*files[1:], files[0]), False)

    def test_a_typical_file_comes_first_where_the_order_is_free(
        self, connection: duckdb.DuckDBPyConnection, tmp_path: Path
    ) -> None:
        files = written(tmp_path, [0, 1, 19, 10])
        assert arranged(connection, files, in_order=False).files[0] == files[3]
        assert set(arranged(connection, files, in_order=False).files) == set(files)
        # In order, the first would be taken for ten times smaller files than there are.
        assert arranged(connection, files, in_order=True).union
        assert arranged(connection, files, in_order=True).files == tuple(files)

    def test_other_columns(self, connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
        files = written(tmp_path, [10, 10, 10], other=1)
        for in_order in (True, False):
            found = arranged(connection, files, in_order=in_order)
            assert (found.files, found.union) == (tuple(files), True)

    def test_one_file_and_none(self, connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
        files = written(tmp_path, [3])
        assert arranged(connection, files, in_order=True).files == tuple(files)
        assert arranged(connection, [], in_order=True).files == ()


def test_rows_of_all_parts_are_seen(tmp_path: Path) -> None:
    """Parts of very different sizes, of an older minor version and a newer one, and partial rows that disagree."""
    for seed in range(4):
        chance = random.Random(seed)
        root = tmp_path / f"{seed}"
        create_trace(root, "record")
        first: dict[str, str] = {}
        num_events = 0
        for name in sorted(f"w{number}" for number in range(6)):
            with TraceWriter(root, run_id="r", writer=name) as writer:
                for _ in range(3):
                    size = chance.choice((1, 2, 200))
                    writer.append("events", {"time_ns": list(range(size)), "kind": "paused"})
                    num_events += size
                    requests = [f"q{chance.randrange(5)}" for _ in range(size)]
                    writer.append("requests", {"request_id": requests, "external_id": f"{name}"})
                    for request in requests:
                        first.setdefault(request, name)
                    writer.seal()
        if seed % 2:
            schema = arrow_schema("events")
            older = pa.schema([field for field in schema if field.name != "attributes"], schema.metadata)
            rows = pa.Table.from_pylist([{"run_id": "r", "time_ns": 1, "kind": "paused"}] * 3, older)
            pq.write_table(rows, root / "events" / "a-000000.parquet")
            num_events += 3
        with connect(root) as session:
            assert session.sql("SELECT count(*) FROM events").rows() == [(num_events,)]
            assert dict(session.sql("SELECT request_id, external_id FROM requests").rows()) == first
