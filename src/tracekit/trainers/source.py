"""The rollout's trace as a trainer needs it: what was sampled in each request, also while it is still recorded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tracekit.errors import InputError
from tracekit.schema import table as definition
from tracekit.store import Trace
from tracekit.store.layout import JOURNAL
from tracekit.store.lease import live_writers

Key = tuple[str, str]
"""(run_id, request_id)."""

Ints = npt.NDArray[np.int64]

# Parts are kept in memory up to this, and read again where an older one is wanted.
_CACHE_BYTES = 256 << 20
_TOKEN_COLUMNS = ("run_id", "request_id", "output_index", "position", "token_id", "is_prompt")
# What the recorded engine did with a request, which a trainer does not do again.
_OF_THE_ENGINE = ("num_cached_tokens", "num_external_cached_tokens")


@dataclass(frozen=True)
class SourceRequest:
    """The sampled tokens of one request, in output order.

    Attributes:
        key: the source's run and request.
        output_index, position, token_id: [S]; indexes may be missing where rows were dropped.
        num_delivered: tokens that the client got; None as long as no outcome is known.
    """

    key: Key
    output_index: Ints
    position: Ints
    token_id: Ints
    num_delivered: int | None

    @property
    def num_sampled(self) -> int:
        """Tokens up to the last one that is known."""
        return int(self.output_index[-1]) + 1 if len(self.output_index) else 0

    @property
    def is_complete(self) -> bool:
        """Whether it has ended and all its delivered tokens are here."""
        if self.num_delivered is None:
            return False
        return int(np.searchsorted(self.output_index, self.num_delivered)) == self.num_delivered


class Source:
    """A rollout trace that may still grow. One thread refreshes it and reads; `num_delivered` may be asked by others.

    Args:
        trace: the rollout.
        run_id: only requests of this run; needed where request ids repeat over runs.

    Raises:
        TraceFormatError: a part cannot be read.
    """

    def __init__(self, trace: Trace, run_id: str | None = None) -> None:
        self._only_run = run_id
        self._journals = trace.path / JOURNAL
        self._tokens = _Pieces(trace, "tokens", _TOKEN_COLUMNS)
        self._requests = _Pieces(trace, "requests", [column.name for column in definition("requests").columns])
        self._outcomes = _Pieces(trace, "outcomes", [column.name for column in definition("outcomes").columns])
        self._keys_of: dict[Any, set[Key]] = {}
        self._delivered: dict[Key, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Takes in what was recorded since the last time."""
        for rows in self._outcomes.refresh():
            for run_id, request_id, num in _tuples(rows, "run_id", "request_id", "num_output_tokens"):
                if num is not None:
                    self._delivered.setdefault((run_id, request_id), num)
        for rows in self._requests.refresh():
            names = ("run_id", "request_id", "external_id", "sample_index")
            for run_id, request_id, external_id, sample_index in _tuples(rows, *names):
                self._name(request_id, (run_id, request_id))
                if external_id is not None:
                    self._name(external_id, (run_id, request_id))
                    self._name((external_id, sample_index or 0), (run_id, request_id))
        for _ in self._tokens.refresh():
            pass

    @property
    def is_recorded(self) -> bool:
        """Whether somebody still writes it."""
        return bool(live_writers(self._journals))

    def find(self, name: Any) -> Key | None:
        """Returns the request of an id, or None where none is recorded yet.

        Args:
            name: the engine's request id, the caller's external id, or (external id, sample index).

        Raises:
            InputError: several requests are called so.
        """
        keys = self._keys_of.get(name)
        if not keys:
            return None
        if len(keys) > 1:
            exact = {key for key in keys if key[1] == name}
            if len(exact) != 1:
                raise InputError(_ambiguous(name, sorted(exact or keys)))
            keys = exact
        return next(iter(keys))

    def num_delivered(self, key: Key) -> int | None:
        """Returns how many tokens the client got, where the outcome is known."""
        return self._delivered.get(key)

    def request(self, key: Key) -> SourceRequest:
        """Returns the sampled tokens of one request."""
        rows = self._rows(self._tokens, [key])
        columns = [rows.column(name).to_numpy().astype(np.int64) for name in ("output_index", "position", "token_id")]
        # A part that was written anew, or a journal beside its part, repeats rows.
        _, first = np.unique(columns[0], return_index=True)
        output_index, position, token_id = (column[first] for column in columns)
        return SourceRequest(key, output_index, position, token_id, self._delivered.get(key))

    def request_rows(self, keys: Sequence[Key]) -> pa.Table:
        """Returns the partial rows of `requests`, in the order of writing."""
        return self._rows(self._requests, keys).drop_columns(["run_id", *_OF_THE_ENGINE])

    def outcome_rows(self, keys: Sequence[Key]) -> pa.Table:
        """Returns the partial rows of `outcomes`, in the order of writing."""
        return self._rows(self._outcomes, keys).drop_columns("run_id")

    def _rows(self, pieces: _Pieces, keys: Sequence[Key]) -> pa.Table:
        try:
            return pa.concat_tables(pieces.rows(key) for key in keys)
        except _CompactedError:
            self.refresh()
            return pa.concat_tables(pieces.rows(key) for key in keys)

    def _name(self, name: Any, key: Key) -> None:
        if self._only_run in (None, key[0]):
            self._keys_of.setdefault(name, set()).add(key)


class _CompactedError(Exception):
    """A part is gone, and its rows are in others that are not known yet."""


class _Pieces:
    """One table of the trace by request: its parts, each read once and sorted, and the rows of its journals."""

    def __init__(self, trace: Trace, table: str, columns: Sequence[str]) -> None:
        self._trace = trace
        self._table = table
        self._columns = columns
        self._paths: list[Path] = []
        self._gone: set[int] = set()
        self._seen: set[Path] = set()
        self._loaded: OrderedDict[int, pa.Table] = OrderedDict()
        self._places: dict[Key, list[tuple[int, int, int]]] = {}
        self._journal_places: dict[Key, tuple[int, int]] = {}
        self._journal: pa.Table = trace.snapshot(table).journal_rows.select(columns).slice(0, 0)

    def refresh(self) -> Iterator[pa.Table]:
        """Yields the rows of new parts, and those of the journals."""
        snapshot = self._trace.snapshot(self._table)
        # What was compacted away stands in new parts.
        self._gone = {piece for piece, path in enumerate(self._paths) if path not in snapshot.parts}
        for path in snapshot.parts:
            if path not in self._seen:
                self._seen.add(path)
                self._paths.append(path)
                piece = len(self._paths) - 1
                rows = self._load(piece)
                for key, start, stop in _spans(rows):
                    self._places.setdefault(key, []).append((piece, start, stop))
                yield rows
        self._journal = self._sorted(snapshot.journal_rows.select(self._columns))
        self._journal_places = {key: (start, stop) for key, start, stop in _spans(self._journal)}
        yield self._journal

    def rows(self, key: Key) -> pa.Table:
        """Returns the rows of one request."""
        places = [place for place in self._places.get(key, ()) if place[0] not in self._gone]
        found = [self._load(piece).slice(start, stop - start) for piece, start, stop in places]
        start, stop = self._journal_places.get(key, (0, 0))
        return pa.concat_tables([*found, self._journal.slice(start, stop - start)])

    def _load(self, piece: int) -> pa.Table:
        if piece in self._loaded:
            self._loaded.move_to_end(piece)
            return self._loaded[piece]
        if not self._paths[piece].exists():
            raise _CompactedError
        rows = self._sorted(self._trace.read_part(self._table, self._paths[piece], self._columns))
        self._loaded[piece] = rows
        while len(self._loaded) > 1 and sum(one.nbytes for one in self._loaded.values()) > _CACHE_BYTES:
            self._loaded.popitem(last=False)
        return rows

    def _sorted(self, rows: pa.Table) -> pa.Table:
        if self._table == "tokens":
            rows = rows.filter(pc.and_(pc.invert(rows.column("is_prompt")), pc.is_valid(rows.column("output_index"))))
        run, request = (_codes(rows.column(name)) for name in ("run_id", "request_id"))
        return rows.take(pa.array(np.lexsort((request, run)))).combine_chunks()


def _codes(column: pa.ChunkedArray) -> Ints:
    indices = column.combine_chunks().dictionary_encode().indices
    codes: Ints = indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _spans(rows: pa.Table) -> Iterator[tuple[Key, int, int]]:
    """Yields each request of sorted rows, with where its rows begin and end."""
    if not rows.num_rows:
        return
    run, request = (_codes(rows.column(name)) for name in ("run_id", "request_id"))
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(run) != 0) | (np.diff(request) != 0)]))
    firsts = rows.select(["run_id", "request_id"]).take(pa.array(starts))
    keys = _tuples(firsts, "run_id", "request_id")
    yield from (
        (key, start, stop)
        for key, start, stop in zip(keys, starts.tolist(), [*starts[1:].tolist(), rows.num_rows], strict=True)
    )


def _tuples(rows: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    yield from zip(*(rows.column(name).to_pylist() for name in names), strict=True)


def _ambiguous(name: Any, keys: list[Key]) -> str:
    runs = sorted({run_id for run_id, _ in keys})
    if len(runs) > 1:
        return f"request '{name}' stands in {len(runs)} runs of the source ({', '.join(runs[:3])}); give source_run"
    return f"'{name}' names {len(keys)} samples of the source; give (external id, sample index), or request ids"
