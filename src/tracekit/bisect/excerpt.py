"""Copies the rows of a few requests, and of their first tokens, into a trace of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tracekit.bisect.result import Excerpt
from tracekit.bisect.scores import Key
from tracekit.schema import arrow_schema, table_names
from tracekit.store import Trace, TraceWriter, create_trace

_WRITER = "excerpt"
# Tables with a row of many values a token; they are copied where all of them together are no larger.
_WIDE = ("logits", "hidden", "routes")
_WIDE_BYTES = 256 << 10


def write_excerpt(source: Trace, out: Path, cuts: Mapping[Key, int], *, parent: str | None) -> Excerpt:
    """Writes the rows of some requests, of all tables; of their output only the first tokens.

    Args:
        source: the trace.
        out: where the new one goes.
        cuts: the requests, each with how many output tokens are kept.
        parent: trace_id of the trace that the new one replays or scores.

    Raises:
        OutputExistsError: `out` is taken.
        TraceFormatError: a part cannot be read.
    """
    create_trace(out, source.manifest.role, parent=parent)  # type: ignore[arg-type]
    rows = _Rows(source, cuts)
    wide = {name: rows.of(name) for name in _WIDE}
    left_out = tuple(name for name in _WIDE if wide[name].num_rows)
    if sum(table.nbytes for table in wide.values()) <= _WIDE_BYTES:
        left_out = ()
    with TraceWriter(out, run_id=next(iter(cuts))[0], writer=_WRITER) as writer:
        for name in table_names():
            table = rows.of(name) if name not in wide else wide[name]
            if table.num_rows and name not in left_out:
                writer.append(name, {column: table.column(column) for column in table.column_names})
    written = Trace(out)
    num_bytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return Excerpt(out, written.num_rows("tokens"), num_bytes, left_out)


class _Rows:
    """The rows of some requests in a trace."""

    def __init__(self, source: Trace, cuts: Mapping[Key, int]) -> None:
        self._source = source
        self._cuts = cuts
        self._runs = pa.array(sorted({run_id for run_id, _ in cuts}), pa.string())
        self._keys = pa.array(["\0".join(key) for key in cuts], pa.string())
        self._tokens = self._read("tokens")
        # The last position that is kept of each request, and the steps that any of them was in.
        self._last: dict[Key, int] = {}
        self._steps: set[tuple[str, int]] = set()
        for row in self._tokens.select(["run_id", "request_id", "position", "step_id"]).to_pylist():
            key = (row["run_id"], row["request_id"])
            self._last[key] = max(self._last.get(key, -1), row["position"])
            self._steps.add((row["run_id"], row["step_id"]))

    def of(self, name: str) -> pa.Table:
        """Returns them of one table."""
        if name == "tokens":
            return self._tokens
        table = self._read(name)
        return self._with_ends(table) if name == "outcomes" else table

    def _read(self, name: str) -> pa.Table:
        pieces = [self._chosen(piece) for piece in self._pieces(name)]
        table = pa.concat_tables(pieces)
        keep = [self._is_kept(name, row) for row in _small(table).to_pylist()]
        return table.filter(pa.array(keep, pa.bool_()))

    def _pieces(self, name: str) -> Iterator[pa.Table]:
        """Yields a table in pieces: a trace may be larger than memory."""
        snapshot = self._source.snapshot(name)
        columns = arrow_schema(name).names
        for path in snapshot.parts:
            yield self._source.read_part(name, path, columns)
        yield snapshot.journal_rows

    def _chosen(self, piece: pa.Table) -> pa.Table:
        of_run = pc.is_in(piece.column("run_id"), self._runs)
        if "request_id" not in piece.column_names:
            return piece.filter(of_run)
        request_ids = piece.column("request_id")
        keys = pc.binary_join_element_wise(piece.column("run_id"), request_ids, "\0")
        # What is about no request is about the engine.
        return piece.filter(pc.or_(pc.is_in(keys, self._keys), pc.and_(of_run, pc.is_null(request_ids))))

    def _is_kept(self, name: str, row: Mapping[str, Any]) -> bool:
        key: Key = (row["run_id"], row.get("request_id") or "")
        if name in ("tokens", "logits", "hidden"):
            return row["output_index"] is None or bool(row["output_index"] < self._cuts[key])
        if name == "routes":
            return bool(row["position"] <= self._last.get(key, -1))
        if name in ("steps", "events") and row.get("request_id") is None and row["step_id"] is not None:
            return (row["run_id"], row["step_id"]) in self._steps
        return True

    def _with_ends(self, outcomes: pa.Table) -> pa.Table:
        """Returns outcomes of requests that ended where they were cut, as far as they are known to have gone on."""
        rows = outcomes.to_pylist()
        for row in rows:
            cut = self._cuts[row["run_id"], row["request_id"]]
            if row["num_output_tokens"] is not None and row["num_output_tokens"] > cut:
                row |= {"num_output_tokens": cut, "finish_reason": "length", "stop_reason": None}
        return pa.Table.from_pylist(rows, schema=outcomes.schema)


def _small(table: pa.Table) -> pa.Table:
    """Returns the columns that decide whether a row is kept."""
    names = ("run_id", "request_id", "output_index", "position", "step_id")
    return table.select([name for name in names if name in table.column_names])
