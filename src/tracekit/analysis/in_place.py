"""Two compacted traces of the same tokens have their rows in the same places: they need not be joined by their keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template

import duckdb

from tracekit import schema
from tracekit.analysis import library
from tracekit.analysis.parts import listed
from tracekit.analysis.quoting import quoted
from tracekit.analysis.source import sql_type
from tracekit.store.layout import EMPTY_WRITER, Bucket, Segment

_TABLE = "tokens"
# Null where one side has no such row.
_SAME = (
    "a_request_id = b_request_id AND a_is_prompt = b_is_prompt AND a_output_index IS NOT DISTINCT FROM b_output_index"
)


def add_in_place(connection: duckdb.DuckDBPyConnection, a: Iterable[Path], b: Iterable[Path]) -> None:
    """Makes the view `_same_places`, which has a row where the tokens of both traces are in the same places.

    Where the tokens of both stand in buckets of equal sizes, it makes the view `_in_place` too, which has them side by
    side. That all rows are in the same places is looked up when the first view is read; that all of them are to be
    compared, `_as_they_stand` says.

    Args:
        connection: has the views of both traces, in the schemas a and b.
        a: part files of the first trace.
        b: part files of the second.
    """
    left, right = (_buckets(path for path in files if path.parent.name == _TABLE) for files in (a, b))
    condition = "false"
    if left and right and _fit(connection, left, right):
        arms = "UNION ALL\n".join(_arms(connection, left, right))
        connection.execute(f"CREATE VIEW _in_place AS\n{arms}")
        condition = f"(SELECT count_if(NOT coalesce({_SAME}, false)) = 0 FROM _in_place)"
    connection.execute(f"CREATE VIEW _same_places AS SELECT true AS held WHERE {condition}")


def _buckets(files: Iterable[Path]) -> dict[Bucket, Path] | None:
    """Returns the parts by bucket; None where there are others, or several of one bucket."""
    found: dict[Bucket, Path] = {}
    for path in files:
        segment = Segment.of(_TABLE, path)
        bucket = None if segment is None else Bucket.of(segment)
        if segment is not None and segment.writer == EMPTY_WRITER:
            continue
        if bucket is None or bucket in found:
            return None
        found[bucket] = path
    return found


def _fit(connection: duckdb.DuckDBPyConnection, a: Mapping[Bucket, Path], b: Mapping[Bucket, Path]) -> bool:
    if a.keys() != b.keys():
        return False
    journals = f"SELECT (SELECT count(*) FROM a._journal_{_TABLE}) + (SELECT count(*) FROM b._journal_{_TABLE})"
    if connection.execute(journals).fetchall()[0][0]:
        return False
    counts = [_num_rows(connection, list(files.values())) for files in (a, b)]
    return all(counts[0][a[bucket]] == counts[1][b[bucket]] for bucket in a)


def _num_rows(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> dict[Path, int]:
    rows = connection.execute(f"SELECT file_name, num_rows FROM parquet_file_metadata({listed(files)})").fetchall()
    return {Path(name): number for name, number in rows}


def _arms(connection: duckdb.DuckDBPyConnection, a: Mapping[Bucket, Path], b: Mapping[Bucket, Path]) -> Iterator[str]:
    template = Template(library.module("prelude/in_place"))
    for bucket in sorted(a):
        columns = [_columns(connection, side, files[bucket]) for side, files in (("a", a), ("b", b))]
        files = {side: listed([files[bucket]]) for side, files in (("a", a), ("b", b))}
        yield template.substitute(columns=", ".join(column for side in columns for column in side), **files)


def _columns(connection: duckdb.DuckDBPyConnection, side: str, path: Path) -> Iterator[str]:
    """Yields the columns of the format as they come out of one file: those it lacks are null."""
    present = {row[0] for row in connection.execute(f"DESCRIBE FROM read_parquet({listed([path])})").fetchall()}
    for column in schema.table(_TABLE).columns:
        value = f"{side}.{quoted(column.name)}" if column.name in present else "NULL"
        yield f"{value}::{sql_type(column.type)} AS {side}_{column.name}"
