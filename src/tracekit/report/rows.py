"""Writes the rows of a query in the format asked for."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tracekit.analysis import Result
from tracekit.errors import QueryError
from tracekit.report.console import new_table, to_bytes
from tracekit.report.values import dump_json, to_csv, to_text

FORMATS = ("table", "json", "csv", "parquet")


def write_rows(result: Result, output_format: str, sink: BinaryIO, *, max_rows: int | None = None) -> int:
    """Writes all rows of a result.

    Args:
        result: the rows; they are streamed, except into a table.
        output_format: one of FORMATS. 'json' is one array of objects, 'csv' has a header line.
        sink: where the bytes go.
        max_rows: how many rows a table shows; all by default. The other formats always hold all.

    Returns:
        How many rows were left out.

    Raises:
        QueryError: the query failed while it ran, or its columns have no names of their own in this format.
    """
    if output_format == "table":
        return _write_table(result, sink, max_rows)
    writers: dict[str, Callable[[Result, BinaryIO], None]] = {
        "json": _write_json,
        "csv": _write_csv,
        "parquet": _write_parquet,
    }
    writers[output_format](result, sink)
    return 0


def _write_table(result: Result, sink: BinaryIO, max_rows: int | None) -> int:
    table = new_table()
    for field in result.schema:
        table.add_column(field.name, justify="right" if _is_number(field.type) else "left", overflow="fold")
    rows = _rows(result)
    for row in itertools.islice(rows, max_rows):
        table.add_row(*(to_text(value) for value in row))
    sink.write(to_bytes(table))
    return sum(1 for _ in rows)


def _write_json(result: Result, sink: BinaryIO) -> None:
    _check_names(result, "JSON")
    separator = b"[\n  "
    for row in _rows(result):
        sink.write(separator + dump_json(dict(zip(result.columns, row, strict=True))).encode())
        separator = b",\n  "
    sink.write(b"[]\n" if separator.startswith(b"[") else b"\n]\n")


def _write_csv(result: Result, sink: BinaryIO) -> None:
    text = io.TextIOWrapper(sink, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    try:
        writer.writerow(result.columns)
        for row in _rows(result):
            writer.writerow([to_csv(value) for value in row])
    finally:
        # Otherwise the wrapper closes the sink, which is the caller's.
        text.detach()


def _write_parquet(result: Result, sink: BinaryIO) -> None:
    _check_names(result, "Parquet")
    with pq.ParquetWriter(sink, result.schema, compression="zstd") as writer:
        for batch in result.batches():
            writer.write_batch(batch)


def _rows(result: Result) -> Iterator[tuple[Any, ...]]:
    for batch in result.batches():
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _check_names(result: Result, output_format: str) -> None:
    for name in result.columns:
        if result.columns.count(name) > 1:
            raise QueryError(f"two columns are called '{name}', which {output_format} cannot hold; rename one with AS")


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
