"""What a plan needs of the parent's requests before any prompt is loaded."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tracekit.errors import InputError
from tracekit.replay.parent import Ints, Key, TablePieces


class Prompts:
    """Where each request's rows stand, when it arrived, how long its prompt is.

    Attributes:
        largest_ids: the largest token id of each prompt.
        adapters: the LoRA adapter of each request that has one.
    """

    def __init__(self, requests: TablePieces) -> None:
        self._places: dict[Key, list[tuple[int, int]]] = {}
        self._lengths: dict[Key, int] = {}
        self._arrivals: dict[Key, int] = {}
        self.largest_ids: dict[Key, int] = {}
        self.adapters: dict[Key, str] = {}
        for piece, keys, codes in requests.distinct_keys():
            rows = requests.read(piece, ["arrival_ns", "prompt_token_ids", "lora"])
            lengths, largest = _list_lengths_and_maxima(rows.column("prompt_token_ids").combine_chunks())
            arrivals, adapters = (rows.column(name).to_pylist() for name in ("arrival_ns", "lora"))
            for row, code in enumerate(codes.tolist()):
                key = keys[code]
                self._places.setdefault(key, []).append((piece, row))
                if arrivals[row] is not None:
                    self._arrivals.setdefault(key, arrivals[row])
                if adapters[row] is not None:
                    self.adapters.setdefault(key, adapters[row])
                if lengths[row] >= 0:
                    self._lengths.setdefault(key, int(lengths[row]))
                    self.largest_ids.setdefault(key, int(largest[row]))

    def length(self, key: Key) -> int:
        if key not in self._lengths:
            raise InputError(
                f"request '{key[1]}' has no prompt_token_ids, so it cannot be replayed; was its row dropped, "
                "or are prompts left out of this trace?"
            )
        if self._lengths[key] == 0:
            raise InputError(f"request '{key[1]}' has an empty prompt: its first token has nothing to be scored after")
        return self._lengths[key]

    def places(self, key: Key) -> tuple[Ints, Ints]:
        places = np.array(self._places[key], np.int64)
        return places[:, 0], places[:, 1]

    def order(self, key: Key) -> tuple[Any, ...]:
        """Sorts by arrival; without it, ids with numbers in them by number."""
        arrival = self._arrivals.get(key)
        parts = re.split(r"(\d+)", key[1])
        natural = [(int(text), "") if index % 2 else (-1, text) for index, text in enumerate(parts)]
        return (arrival is None, arrival or 0, natural, key[0])


def _list_lengths_and_maxima(lists: pa.ListArray) -> tuple[Ints, Ints]:
    """Returns each list's length, -1 for a null one, and its largest entry, -1 for an empty one."""
    lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    values: npt.NDArray[np.int32] = lists.flatten().to_numpy(zero_copy_only=False)
    largest = np.full(len(lists), -1, np.int64)
    filled = lengths > 0
    starts = np.concatenate([[0], np.cumsum(np.maximum(lengths, 0))])[:-1]
    if filled.any():
        largest[filled] = np.maximum.reduceat(values, starts[filled])
    return lengths, largest
