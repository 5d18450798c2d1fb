"""Writes the rows of a query in the format asked for."""

from __future__ import annotations

from typing import BinaryIO

from tracekit.report.formats.base import Rows, writer
from tracekit.report.formats.table import write_first


def write_rows(rows: Rows, output_format: str, sink: BinaryIO, *, max_rows: int | None = None) -> int:
    """Writes all rows of a result.

    Args:
        rows: the rows; they are streamed, except into a table.
        output_format: the name of a format, see `formats.base.format_names`. 'json' is one array of objects, 'csv' has
            a header line, 'md' is a Markdown table.
        sink: where the bytes go.
        max_rows: how many rows a table shows; all by default. The other formats always hold all.

    Returns:
        How many rows were left out.

    Raises:
        ConfigError: there is no such format.
        QueryError: the query failed while it ran, or its columns have no names of their own in this format.
    """
    if output_format == "table":
        return write_first(rows, sink, max_rows)
    writer(output_format)(rows, sink)
    return 0
