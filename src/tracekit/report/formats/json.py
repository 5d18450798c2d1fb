"""JSON: one array of objects, one a line."""

from __future__ import annotations

from typing import BinaryIO

from tracekit.report.formats.base import Rows, check_names, python_rows
from tracekit.report.values import dump_json


def write(rows: Rows, sink: BinaryIO) -> None:
    check_names(rows, "JSON")
    names = rows.schema.names
    separator = b"[\n  "
    for row in python_rows(rows):
        sink.write(separator + dump_json(dict(zip(names, row, strict=True))).encode())
        separator = b",\n  "
    sink.write(b"[]\n" if separator.startswith(b"[") else b"\n]\n")
