"""The hidden states of a parent trace: where each output token's row stands, read when it is wanted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracekit.errors import InputError
from tracekit.replay.parent import Ints, Key, TablePieces
from tracekit.replay.tokens import DeliveredTokens
from tracekit.store import Trace

Float32Array = npt.NDArray[np.float32]


class HiddenRows:
    """Finds hidden states of delivered output tokens.

    Args:
        trace: the parent.
        tokens: its delivered tokens.

    Attributes:
        num_of: for each request, how many of its output tokens have a row, up to the first that has none.

    Raises:
        InputError: no token has one.
    """

    def __init__(self, trace: Trace, tokens: DeliveredTokens) -> None:
        self._table = TablePieces(trace, "hidden")
        self._pieces = np.full(len(tokens.token_ids), -1, np.int32)
        self._rows = np.full(len(tokens.token_ids), -1, np.int32)
        for piece, keys, codes in self._table.distinct_keys():
            index = self._table.read(piece, ["output_index"]).column("output_index")
            index_R = index.fill_null(-1).to_numpy().astype(np.int64)
            slices = [tokens.slices.get(key, slice(0, 0)) for key in keys]
            starts = np.array([tokens_of.start for tokens_of in slices])[codes]
            stops = np.array([tokens_of.stop for tokens_of in slices])[codes]
            known = np.flatnonzero((index_R >= 0) & (starts + index_R < stops))
            places = (starts + index_R)[known]
            self._pieces[places], self._rows[places] = piece, known
        self.num_of: dict[Key, int] = {
            key: int(np.argmin(np.append(self._pieces[place] >= 0, False))) for key, place in tokens.slices.items()
        }
        if not any(self.num_of.values()):
            raise InputError(
                f"{trace.path} has no hidden states; record with --hidden, or replay with a backend that runs the model"
            )

    def take(self, wanted: list[slice]) -> Iterator[tuple[Float32Array, str]]:
        """Yields for each slice of the token arrays its rows [T, H], and their dtype in the engine."""
        places = np.concatenate([np.arange(tokens.start, tokens.stop) for tokens in wanted])
        found = self._table.take(["hidden", "source_dtype"], _wide(self._pieces[places]), _wide(self._rows[places]))
        lists: pa.ListArray = found.column("hidden").combine_chunks()
        rows_RH = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(places), -1)
        dtypes = found.column("source_dtype")
        start = 0
        for tokens in wanted:
            stop = start + tokens.stop - tokens.start
            yield rows_RH[start:stop], dtypes[start].as_py()
            start = stop


def _wide(values: npt.NDArray[np.int32]) -> Ints:
    return values.astype(np.int64)
