"""Parquet, with the types that the columns have in Arrow."""

from __future__ import annotations

from typing import BinaryIO

import pyarrow.parquet as pq

from tracekit.report.formats.base import Rows, check_names


def write(rows: Rows, sink: BinaryIO) -> None:
    check_names(rows, "Parquet")
    with pq.ParquetWriter(sink, rows.schema, compression="zstd") as writer:
        for batch in rows.batches():
            writer.write_batch(batch)
