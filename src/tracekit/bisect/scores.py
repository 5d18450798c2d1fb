"""Scores of A's tokens under all settings, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracekit.analysis import connect
from tracekit.bisect.queries import query
from tracekit.bisect.shares import Floats
from tracekit.errors import InputError
from tracekit.store import Trace

Key = tuple[str, str]
"""(run_id, request_id) of A."""

BASES = ("raw", "processed")
_INDEX_BITS = 32
_INDEX_MASK = (1 << _INDEX_BITS) - 1


class Scores:
    """What A, B, and each trace that is added give the tokens that all of them have a finite logprob of.

    Args:
        a, b: the two traces.
        basis: 'raw' or 'processed' logprobs; None for the first that both have.
        options: of `connect`, for A and B.

    Attributes:
        basis: which logprobs.

    Raises:
        AlignmentError: A and B do not align.
        InputError: no token has a logprob on both sides.
    """

    def __init__(self, a: Trace, b: Trace, basis: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        self._a = a
        self._numbers: dict[Key, int] = {}
        self._names: list[Key] = []
        for one in BASES if basis is None else (basis,):
            self.basis = one
            keys, a_values, b_values = self._read(b, dict(options or {}))
            if np.isfinite(b_values - a_values).any():
                break
        else:
            raise InputError(
                f"{a.path} and {b.path} have no token with a {basis or 'raw or processed'} logprob on both sides, so "
                "there is no difference to look for"
            )
        self._keys = keys
        self._values = {"a": a_values, "b": b_values}
        self._finite = np.isfinite(a_values) & np.isfinite(b_values)

    def add(self, name: str, trace: Path) -> None:
        """Adds what a replay of A, or a repeat of its run, gives the tokens.

        Raises:
            InputError: it has no token in common with A and B.
        """
        if name in self._values:
            return
        keys, _, values = self._read(Trace(trace), {"partial": True, "any_tokenizer": True})
        places = np.minimum(np.searchsorted(keys, self._keys), max(len(keys) - 1, 0))
        found = keys[places] == self._keys if len(keys) else np.zeros(len(self._keys), bool)
        column = np.full(len(self._keys), np.nan)
        column[found] = values[places[found]]
        finite = self._finite & np.isfinite(column)
        if not finite.any():
            raise InputError(f"{trace} has no {self.basis} logprob of a token that A and B have one of")
        self._values[name] = column
        self._finite = finite

    @property
    def num_tokens(self) -> int:
        return int(self._finite.sum())

    @property
    def num_left_out(self) -> int:
        """Tokens of A and B that are compared nowhere, as a side or a replay has no finite logprob of them."""
        return len(self._keys) - self.num_tokens

    @property
    def num_requests(self) -> int:
        return len(np.unique(self.requests()))

    def of(self, name: str) -> Floats:
        """Returns the scores of 'a', 'b', or an added trace, in A's order of tokens."""
        values: Floats = self._values[name][self._finite]
        return values

    def difference(self, first: str, second: str) -> Floats:
        """Returns the second's scores minus the first's."""
        return self.of(second) - self.of(first)

    def requests(self) -> npt.NDArray[np.int64]:
        """Returns the number of each token's request."""
        requests: npt.NDArray[np.int64] = self._keys[self._finite] >> _INDEX_BITS
        return requests

    def indices(self) -> npt.NDArray[np.int64]:
        """Returns each token's output index."""
        indices: npt.NDArray[np.int64] = self._keys[self._finite] & _INDEX_MASK
        return indices

    @property
    def names(self) -> list[Key]:
        """The requests by their numbers."""
        return self._names

    def place(self, key: Key, index: int) -> int:
        """Returns where a token stands."""
        wanted = (self._numbers[key] << _INDEX_BITS) | index
        return int(np.searchsorted(self._keys[self._finite], wanted))

    def token(self, place: int) -> tuple[Key, int]:
        """Returns the request and the output index of a token."""
        key = int(self._keys[self._finite][place])
        return self._names[key >> _INDEX_BITS], key & _INDEX_MASK

    def _read(self, other: Trace, options: dict[str, Any]) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
        rows = read_rows(self._a, other, self.basis, options)
        keys = self._keys_of(rows)
        order = np.argsort(keys, kind="stable")
        a_values, b_values = (
            rows.column(name).to_numpy().astype(np.float64, copy=False)[order] for name in ("a_value", "b_value")
        )
        return keys[order], a_values, b_values

    def _keys_of(self, rows: pa.Table) -> npt.NDArray[np.int64]:
        """Returns one number a token, alike in all traces."""
        runs, requests = (rows.column(name).combine_chunks().dictionary_encode() for name in ("run_id", "request_id"))
        run_names, request_names = runs.dictionary.to_pylist(), requests.dictionary.to_pylist()
        codes = runs.indices.to_numpy().astype(np.int64) * max(len(request_names), 1) + requests.indices.to_numpy()
        distinct, inverse = np.unique(codes, return_inverse=True)
        numbers = [
            self._number((run_names[code // len(request_names)], request_names[code % len(request_names)]))
            for code in distinct.tolist()
        ]
        indices = rows.column("output_index").to_numpy().astype(np.int64)
        of_requests = np.array(numbers, np.int64)[inverse] if numbers else np.empty(0, np.int64)
        keys: npt.NDArray[np.int64] = (of_requests << _INDEX_BITS) | indices
        return keys

    def _number(self, key: Key) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(self._names)
            self._names.append(key)
        return self._numbers[key]


def read_rows(a: Trace, b: Trace, basis: str, options: Mapping[str, Any]) -> pa.Table:
    """Returns what two traces give each token that both have: one row a token, see scores.sql."""
    with connect(a, b, **options) as session:
        return session.sql(query("scores"), {"raw": basis == "raw"}).arrow()
