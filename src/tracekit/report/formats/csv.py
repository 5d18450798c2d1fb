"""CSV under a header line: null is an empty cell, lists and structs are JSON."""

from __future__ import annotations

import csv
import io
from typing import BinaryIO

from tracekit.report.formats.base import Rows, python_rows
from tracekit.report.values import to_csv


def write(rows: Rows, sink: BinaryIO) -> None:
    text = io.TextIOWrapper(sink, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    try:
        writer.writerow(rows.schema.names)
        for row in python_rows(rows):
            writer.writerow([to_csv(value) for value in row])
    finally:
        # Otherwise the wrapper closes the sink, which is the caller's.
        text.detach()
