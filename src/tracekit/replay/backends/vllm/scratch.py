"""The trace that the recorder writes in the engine's process, read batch by batch.

Shapes: T output tokens of a sequence, K candidates.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tracekit.errors import BackendUnavailableError
from tracekit.replay.parent import Ints, TablePieces, merge_rows
from tracekit.schema import table
from tracekit.store import Trace
from tracekit.store.layout import EMPTY_WRITER, part_segments

_POLL_SECONDS = 0.05
_PIECE_BYTES = 64 << 20


@dataclass(frozen=True)
class Expected:
    """What the trace will have of one request.

    Attributes:
        first: the position of its first token in question.
        num_tokens: how many follow from there.
    """

    first: int
    num_tokens: int


@dataclass(frozen=True)
class _Places:
    """Where rows of one table stand, by request; each int64 [T]."""

    table: TablePieces
    pieces: Mapping[str, Ints]
    rows: Mapping[str, Ints]


class ScratchTrace:
    """A trace that grows while it is read; what has been read may be removed.

    Args:
        path: the trace.
        timeout: seconds that rows may be behind the engine.
    """

    def __init__(self, path: Path, timeout: float = 120.0) -> None:
        self._path = path
        self._timeout = timeout

    def run(self) -> dict[str, Any]:
        """Returns the columns of `runs`, those of all processes merged into one.

        Raises:
            BackendUnavailableError: the recorder does not work in that engine.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            rows = Trace(self._path).read("runs").to_pylist() if (self._path / "manifest.json").exists() else []
            merged = merge_rows(sorted(rows, key=lambda row: row["process"] == "front_end"))
            if merged.get("disabled_reason") is not None:
                raise BackendUnavailableError(f"the recorder does not work there: {merged['disabled_reason']}")
            if merged.get("vocab_size") is not None:
                return merged
            if time.monotonic() > deadline:
                raise BackendUnavailableError(
                    "the recorder did not start in the engine's process; is tracekit installed there, with its entry "
                    "points?"
                )
            time.sleep(_POLL_SECONDS)

    def collect(self, expected: Mapping[str, Expected], also: tuple[str, ...] = ()) -> BatchFound:
        """Waits until all rows of a batch are there.

        Args:
            expected: by the id that was given to the engine.
            also: further tables, with a row a token.

        Raises:
            BackendUnavailableError: some did not come.
        """
        deadline = time.monotonic() + self._timeout
        missing: list[str] = []
        while True:
            ids = self._engine_ids(expected)
            if len(ids) == len(expected):
                places = {name: self._places(name, ids, expected) for name in ("tokens", *also)}
                missing = [
                    f"{name} of request {given}"
                    for name, of in places.items()
                    for given in expected
                    if (of.rows[given] < 0).any()
                ]
                if not missing:
                    return BatchFound(Trace(self._path), ids, places)
            if time.monotonic() > deadline:
                lost = self._events()
                what = missing[0] if missing else "requests"
                raise BackendUnavailableError(f"the recorder in the engine's process lost {what}{lost}")
            time.sleep(_POLL_SECONDS)

    def forget(self) -> None:
        """Removes what has been written so far of large tables."""
        for name in ("tokens", "hidden", "logits"):
            for segment in part_segments(self._path, name):
                if segment.writer != EMPTY_WRITER:
                    segment.part(self._path).unlink(missing_ok=True)

    def _engine_ids(self, expected: Mapping[str, Expected]) -> dict[str, str]:
        """Returns by the engine's own id the one that was given to it."""
        rows = Trace(self._path).read("requests", ["request_id", "external_id"]).to_pylist()
        found: dict[str, str] = {}
        for row in rows:
            for given in (row["external_id"], row["request_id"]):
                if given in expected:
                    found[row["request_id"]] = given
        return found

    def _places(self, name: str, ids: Mapping[str, str], expected: Mapping[str, Expected]) -> _Places:
        pieces = TablePieces(Trace(self._path), name)
        piece_of = {given: np.full(of.num_tokens, -1, np.int64) for given, of in expected.items()}
        row_of = {given: np.full(of.num_tokens, -1, np.int64) for given, of in expected.items()}
        wanted = pa.array(list(ids))
        for piece in range(len(pieces)):
            keys = pieces.read(piece, ["request_id", "position"])
            found = np.flatnonzero(pc.is_in(keys.column("request_id"), wanted).to_numpy())
            taken = keys.take(pa.array(found))
            positions = taken.column("position").to_numpy()
            encoded = taken.column("request_id").combine_chunks().dictionary_encode()
            codes = encoded.indices.to_numpy(zero_copy_only=False)
            for code, request_id in enumerate(encoded.dictionary.to_pylist()):
                given = ids[request_id]
                of_request = np.flatnonzero(codes == code)
                index = positions[of_request] - expected[given].first
                inside = (index >= 0) & (index < expected[given].num_tokens)
                piece_of[given][index[inside]] = piece
                row_of[given][index[inside]] = found[of_request[inside]]
        return _Places(pieces, piece_of, row_of)

    def _events(self) -> str:
        rows = Trace(self._path).read("events", ["kind", "attributes"]).to_pylist()
        told = [f"{row['kind']} {row['attributes']}" for row in rows if row["kind"].startswith(("recorder", "rows_"))]
        return f" ({told[-1]})" if told else ""


class BatchFound:
    """The rows of one batch.

    Args:
        trace: the trace.
        ids: by the engine's own id, the one that was given to it.
        places: where the rows of each table stand.
    """

    def __init__(self, trace: Trace, ids: Mapping[str, str], places: Mapping[str, _Places]) -> None:
        self._trace = trace
        self._ids = ids
        self._places = places

    def tokens(self, given: list[str]) -> Iterator[pa.Table]:
        """Yields for each request its rows of `tokens`, in the order of positions."""
        names = [column.name for column in table("tokens").columns]
        of = self._places["tokens"]
        rows = of.table.take(
            names, np.concatenate([of.pieces[id_] for id_ in given]), np.concatenate([of.rows[id_] for id_ in given])
        )
        start = 0
        for id_ in given:
            yield rows.slice(start, len(of.rows[id_]))
            start += len(of.rows[id_])

    def whole_rows(self, name: str, given: str) -> Iterator[tuple[int, Any, list[str]]]:
        """Yields in pieces (index of the first token, values float32 [T, X], source dtypes) of `hidden` or `logits`."""
        of = self._places[name]
        num_tokens = len(of.rows[given])
        step, start = 1, 0
        while start < num_tokens:
            part = slice(start, min(start + step, num_tokens))
            rows = of.table.take([name, "source_dtype"], of.pieces[given][part], of.rows[given][part])
            lists: pa.ListArray = rows.column(name).combine_chunks()
            values = lists.flatten().to_numpy(zero_copy_only=False).reshape(rows.num_rows, -1)
            yield start, values, rows.column("source_dtype").to_pylist()
            start = part.stop
            step = max(1, _PIECE_BYTES // max(1, values[0].nbytes))

    def requests(self) -> dict[str, dict[str, Any]]:
        """Returns the rows of `requests`, merged over processes."""
        rows = self._trace.read("requests").to_pylist()
        found: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["request_id"] in self._ids:
                found.setdefault(self._ids[row["request_id"]], []).append(row)
        return {given: merge_rows(of) for given, of in found.items()}

    def steps(self) -> list[dict[str, Any]]:
        """Returns the rows of `steps` that scheduled a request of the batch, in order, with the given ids."""
        found = []
        for row in self._trace.read("steps").to_pylist():
            if any(request_id in self._ids for request_id in row["request_ids"] or ()):
                row["request_ids"] = [self._ids.get(request_id, request_id) for request_id in row["request_ids"]]
                found.append(row)
        return sorted(found, key=lambda row: row["step_id"])
