"""The delivered tokens of a parent trace: identifiers of all in memory, candidate lists read where they are wanted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tracekit.errors import TraceFormatError
from tracekit.replay.parent import Key, TablePieces, merge_rows
from tracekit.store import Trace

_OUTCOME = ("finish_reason", "stop_reason", "num_output_tokens")

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DeliveredTokens:
    """Output tokens of all requests, sorted by request and output index, 20 bytes each.

    Attributes:
        table: the parent's table of tokens.
        slices: where each request's tokens stand in the arrays below.
        token_ids, positions: int32.
        outcomes: what is known of each request's end.
        num_unscored: for each request, delivered tokens left out because their row or one before it is missing.
    """

    table: TablePieces
    slices: Mapping[Key, slice]
    token_ids: Int32Array
    positions: Int32Array
    outcomes: Mapping[Key, Mapping[str, Any]]
    num_unscored: Mapping[Key, int]
    _pieces: Int32Array
    _rows: Int32Array

    def cut(self, num_of: Mapping[Key, int]) -> DeliveredTokens:
        """Returns them with no more than so many first ones of each request; what is cut off counts as unscored."""
        slices, num_unscored = {}, dict(self.num_unscored)
        for key, tokens in self.slices.items():
            num_kept = min(num_of[key], tokens.stop - tokens.start)
            num_unscored[key] += tokens.stop - tokens.start - num_kept
            if num_kept:
                slices[key] = slice(tokens.start, tokens.start + num_kept)
        return replace(self, slices=slices, num_unscored=num_unscored)

    def candidates(self, wanted: list[slice]) -> list[Int32Array | None]:
        """Returns for each slice the parent's `top_token_ids`, int32 [T, K], -1 where a row has fewer than K."""
        column = self._take(["top_token_ids"], wanted).column("top_token_ids").combine_chunks()
        return [_padded(column.slice(start, stop - start)) for start, stop in _bounds(wanted)]

    def weights(self, wanted: list[slice]) -> list[list[tuple[int | None, str | None]]]:
        """Returns for each slice the weights that each token was sampled under, as (version, label)."""
        found = self._take(["weight_version", "weight_label"], wanted)
        both = list(zip(*(column.to_pylist() for column in found.columns), strict=True))
        return [both[start:stop] for start, stop in _bounds(wanted)]

    def steps(self, wanted: list[slice]) -> list[Int64Array]:
        """Returns for each slice the step that sampled each token, int64 [T], -1 where that is not known."""
        column = self._take(["step_id"], wanted).column("step_id")
        found = pc.fill_null(column, -1).to_numpy()
        return [found[start:stop] for start, stop in _bounds(wanted)]

    def _take(self, columns: list[str], wanted: list[slice]) -> pa.Table:
        places = np.concatenate([np.arange(tokens.start, tokens.stop) for tokens in wanted])
        return self.table.take(columns, self._pieces[places].astype(np.int64), self._rows[places].astype(np.int64))


def read_delivered_tokens(trace: Trace) -> DeliveredTokens:
    """Reads which tokens a client got, up to each request's first missing row.

    Raises:
        TraceFormatError: two rows name different tokens for one place.
    """
    tokens = TablePieces(trace, "tokens")
    keys, columns = _read_output_rows(tokens)
    order = np.lexsort((columns["output_index"], columns["key"]))
    columns = {name: values[order] for name, values in columns.items()}
    columns = _without_repeats(columns, keys)
    outcomes = _read_outcomes(trace)
    starts = np.searchsorted(columns["key"], np.arange(len(keys) + 1)).tolist()
    slices: dict[Key, slice] = {}
    num_unscored: dict[Key, int] = {}
    for code, key in enumerate(keys):
        start, stop = starts[code], starts[code + 1]
        indices = columns["output_index"][start:stop]
        delivered = outcomes.get(key, {}).get("num_output_tokens")
        num_delivered = len(indices) if delivered is None else int(np.searchsorted(indices, delivered))
        # Rows sorted without repeats stand at their own index exactly until the first gap.
        num_whole = int(np.searchsorted(indices - np.arange(len(indices)), 1))
        num_scored = min(num_delivered, num_whole)
        num_unscored[key] = (num_delivered if delivered is None else delivered) - num_scored
        if num_scored:
            slices[key] = slice(start, start + num_scored)
    return DeliveredTokens(
        tokens,
        slices,
        columns["token_id"],
        columns["position"],
        outcomes,
        num_unscored,
        columns["piece"],
        columns["row"],
    )


def _read_output_rows(tokens: TablePieces) -> tuple[list[Key], dict[str, Int32Array]]:
    codes_of: dict[Key, int] = {}
    pieces: list[dict[str, Int32Array]] = []
    for piece, keys, codes in tokens.distinct_keys():
        rows = tokens.read(piece, ["output_index", "position", "token_id", "is_prompt"])
        is_output = pc.and_(pc.is_valid(rows.column("output_index")), pc.invert(rows.column("is_prompt")))
        places = np.flatnonzero(is_output.to_numpy())
        mapped = np.array([codes_of.setdefault(key, len(codes_of)) for key in keys], np.int32)
        taken = rows.take(pa.array(places))
        pieces.append(
            {name: taken.column(name).to_numpy() for name in ("output_index", "position", "token_id")}
            | {
                "key": mapped[codes[places]],
                "piece": np.full(len(places), piece, np.int32),
                "row": places.astype(np.int32),
            }
        )
    names = ("key", "output_index", "position", "token_id", "piece", "row")
    empty = np.empty(0, np.int32)
    return list(codes_of), {name: np.concatenate([empty, *(piece[name] for piece in pieces)]) for name in names}


def _without_repeats(columns: dict[str, Int32Array], keys: list[Key]) -> dict[str, Int32Array]:
    """Keeps one row a place: a trainer's trace has one for each policy."""
    same_place = (np.diff(columns["key"]) == 0) & (np.diff(columns["output_index"]) == 0)
    contradicting = np.flatnonzero(same_place & (np.diff(columns["token_id"]) != 0))
    if len(contradicting):
        first = int(contradicting[0])
        ids = columns["token_id"][first : first + 2].tolist()
        raise TraceFormatError(
            f"request '{keys[columns['key'][first]][1]}' has two tokens at output_index "
            f"{columns['output_index'][first]}: {ids[0]} and {ids[1]}"
        )
    keep = np.concatenate([[True], ~same_place])[: len(columns["key"])]
    return {name: values[keep] for name, values in columns.items()}


def _read_outcomes(trace: Trace) -> dict[Key, dict[str, Any]]:
    found: dict[Key, dict[str, Any]] = {}
    for row in trace.read("outcomes", ["run_id", "request_id", *_OUTCOME]).to_pylist():
        key = (row.pop("run_id"), row.pop("request_id"))
        found[key] = merge_rows([found[key], row]) if key in found else row
    return found


def _bounds(wanted: list[slice]) -> Iterator[tuple[int, int]]:
    """Yields where each slice begins and ends among the rows of all."""
    return itertools.pairwise(np.cumsum([0, *(tokens.stop - tokens.start for tokens in wanted)]).tolist())


def _padded(lists: pa.ListArray) -> Int32Array | None:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    width = int(lengths.max(initial=0))
    if not width:
        return None
    padded = np.full((len(lists), width), -1, np.int32)
    padded[np.arange(width) < lengths[:, None]] = lists.flatten().to_numpy(zero_copy_only=False)
    return padded
