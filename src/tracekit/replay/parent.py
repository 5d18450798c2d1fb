"""Reads a parent trace in pieces, so that a replay holds identifiers of all rows but lists only of those at work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tracekit.errors import TraceFormatError
from tracekit.schema import arrow_schema
from tracekit.store import Trace

Key = tuple[str, str]
"""(run_id, request_id)."""

Ints = npt.NDArray[np.int64]


class TablePieces:
    """One table of a trace at one moment: its parts one by one, and at last the rows of its journals.

    Args:
        trace: the trace; writers may be at work on it.
        table: a table of the format.
    """

    def __init__(self, trace: Trace, table: str) -> None:
        snapshot = trace.snapshot(table)
        self._schema = arrow_schema(table)
        self._parts = snapshot.parts
        self._journal_rows = snapshot.journal_rows
        self._hold = snapshot.hold

    def __len__(self) -> int:
        return len(self._parts) + 1

    def read(self, piece: int, columns: Sequence[str]) -> pa.Table:
        """Returns some columns of one piece; a column it lacks is null.

        Raises:
            TraceFormatError: the part cannot be read.
        """
        if piece == len(self._parts):
            return self._with_all(columns, self._journal_rows.select(columns))
        return self._with_all(columns, _read_part(self._parts[piece], columns))

    def _with_all(self, columns: Sequence[str], rows: pa.Table) -> pa.Table:
        """Returns rows in the order of the columns, and null for those that a piece lacks."""
        fields = [self._schema.field(name) for name in columns]
        arrays = [
            rows.column(field.name) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
            for field in fields
        ]
        return pa.table(arrays, schema=pa.schema(fields))

    def take(self, columns: Sequence[str], pieces: Ints, rows: Ints) -> pa.Table:
        """Returns the rows at (pieces[i], rows[i]), in this order, opening each piece once."""
        found: list[pa.Table] = [self.read(len(self._parts), columns).slice(0, 0)]
        order: list[Ints] = [np.empty(0, np.int64)]
        for piece in np.unique(pieces):
            places = np.flatnonzero(pieces == piece)
            if piece == len(self._parts):
                found.append(self.read(int(piece), columns).take(pa.array(rows[places])))
            else:
                taken = _take_from_part(self._parts[int(piece)], columns, rows[places])
                found.append(self._with_all(columns, taken))
            order.append(places)
        return pa.concat_tables(found).take(pa.array(np.argsort(np.concatenate(order), kind="stable")))

    def distinct_keys(self) -> Iterator[tuple[int, list[Key], Ints]]:
        """Yields for each piece its number, its distinct keys, and for each of its rows which key it has."""
        for piece in range(len(self)):
            ids = self.read(piece, ["run_id", "request_id"])
            if ids.num_rows:
                runs, run_codes = _codes(ids.column("run_id"))
                requests, request_codes = _codes(ids.column("request_id"))
                pairs, codes = np.unique(run_codes * len(requests) + request_codes, return_inverse=True)
                keys = [(runs[pair // len(requests)], requests[pair % len(requests)]) for pair in pairs.tolist()]
                yield piece, keys, codes.astype(np.int64)


def merge_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns one row of which each column is the first that is not null."""
    merged: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            if merged.get(name) is None:
                merged[name] = value
    return merged


def _codes(column: pa.ChunkedArray) -> tuple[list[str], Ints]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _read_part(path: Path, columns: Sequence[str]) -> pa.Table:
    with _opened(path) as file:
        return file.read(columns=_present(file, columns))


def _take_from_part(path: Path, columns: Sequence[str], rows: Ints) -> pa.Table:
    """Returns some rows of a part, in the order given; of its row groups, only one at a time is in memory."""
    with _opened(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        group_of_rows = np.searchsorted(starts, rows, side="right") - 1
        found, order = [], []
        for group in np.unique(group_of_rows):
            places = np.flatnonzero(group_of_rows == group)
            # Unthreaded: memory of other threads' decoding is kept by each of them.
            whole = file.read_row_group(int(group), columns=_present(file, columns), use_threads=False)
            found.append(whole.take(pa.array(rows[places] - starts[group])))
            order.append(places)
        return pa.concat_tables(found).take(pa.array(np.argsort(np.concatenate(order), kind="stable")))


def _present(file: pq.ParquetFile, columns: Sequence[str]) -> list[str]:
    return [name for name in columns if name in file.schema_arrow.names]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise TraceFormatError(f"{path} cannot be read as a Parquet part ({reason}); restore it") from error
