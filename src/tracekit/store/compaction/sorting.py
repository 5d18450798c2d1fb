"""Sorts the rows of one partition by request and position, also where they are more than memory holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from tracekit.store.compaction.buckets import key_bits
from tracekit.store.compaction.shuffle import Ints, Shuffle

# Rows that share all of these keep their order: partial rows of one request, several policies' scores of one token.
_KEYS = ("request_id", "run_id", "position")


def sorted_rows(shuffle: Shuffle, partition: int, chunk_bytes: int, most_bytes: int) -> Iterator[pa.Table]:
    """Yields the rows of a partition in order, in chunks.

    Args:
        shuffle: the partitions.
        partition: which one.
        chunk_bytes: Arrow bytes of a chunk, about.
        most_bytes: what may be held in memory: of a larger partition, chunks are gathered from the disk.
    """
    num_pieces = shuffle.num_pieces(partition)
    if not num_pieces:
        return
    fits = shuffle.num_bytes[partition] <= most_bytes
    pieces, keys = [], []
    for number in range(num_pieces):
        piece = pa.Table.from_batches([shuffle.read(partition, number)])
        keys.append(piece.select([name for name in _KEYS if name in piece.column_names]))
        # A copy of a few columns would still hold all of the piece.
        if fits:
            pieces.append(piece)
        else:
            keys[-1] = pa.concat_tables([keys[-1]]).take(pa.array(np.arange(piece.num_rows)))
    order = _order(pa.concat_tables(keys))
    num_rows = max(1, len(order) * chunk_bytes // max(1, shuffle.num_bytes[partition]))
    whole = pa.concat_tables(pieces).combine_chunks() if fits else None
    starts = np.cumsum([0, *(piece.num_rows for piece in keys)])
    for start in range(0, len(order), num_rows):
        rows = order[start : start + num_rows]
        yield whole.take(pa.array(rows)) if whole is not None else _gather(shuffle, partition, starts, rows)


def _order(keys: pa.Table) -> Ints:
    columns = [_codes(keys.column(name), spread_of if name == "request_id" else str) for name in keys.column_names]
    order: Ints = np.lexsort(columns[::-1])
    return order


def spread_of(request_id: str) -> tuple[int, str]:
    """Returns what requests of a bucket are sorted by: the same in every trace, however many partitions it had."""
    return key_bits(request_id), request_id


def _codes(column: pa.ChunkedArray, key: Callable[[str], Any]) -> Ints:
    """Returns numbers that are in order as the keys of the values are."""
    if not pa.types.is_string(column.type):
        numbers: Ints = column.to_numpy().astype(np.int64)
        return numbers
    encoded = column.combine_chunks().dictionary_encode()
    keys = [key(value) for value in encoded.dictionary.to_pylist()]
    ranks = np.empty(len(keys), np.int64)
    ranks[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    codes: Ints = ranks[encoded.indices.to_numpy(zero_copy_only=False)]
    return codes


def _gather(shuffle: Shuffle, partition: int, starts: Ints, rows: Ints) -> pa.Table:
    piece_of_rows = np.searchsorted(starts, rows, side="right") - 1
    found, order = [], []
    for number in np.unique(piece_of_rows).tolist():
        places = np.flatnonzero(piece_of_rows == number)
        piece = pa.Table.from_batches([shuffle.read(partition, number)])
        found.append(piece.take(pa.array(rows[places] - starts[number])))
        order.append(places)
    return pa.concat_tables(found).take(pa.array(np.argsort(np.concatenate(order), kind="stable")))
