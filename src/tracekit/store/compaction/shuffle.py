"""Deals the rows of many parts out to partitions that fit the memory, through one nameless temporary file.

Rows keep their order within a partition. The file has no name, so nothing of it stays when the process is killed.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]

# Columns that are all null take their full width in Arrow, and next to nothing compressed.
_CODEC = "lz4_raw"


@dataclass(frozen=True)
class _Piece:
    """Where a record batch stands in the file, and how long it is there and in memory."""

    offset: int
    size: int
    plain_size: int


class Shuffle:
    """Partitions of rows on disk.

    Args:
        folder: where the temporary file is made.
        schema: of the rows.
        num_partitions: how many.
        buffer_bytes: Arrow bytes gathered before they are dealt out.

    Attributes:
        num_bytes: Arrow bytes by partition.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """

    def __init__(self, folder: Path, schema: pa.Schema, num_partitions: int, buffer_bytes: int) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._end = 0
        self._schema = schema
        self._buffer_bytes = buffer_bytes
        self._buffered: list[pa.Table] = []
        self._partitions: list[Ints] = []
        self._num_buffered_bytes = 0
        self._pieces: list[list[_Piece]] = [[] for _ in range(num_partitions)]
        self.num_bytes = [0] * num_partitions

    def add(self, rows: pa.Table, partitions: Ints) -> None:
        """Takes rows, each with the partition it belongs to."""
        self._buffered.append(rows)
        self._partitions.append(partitions)
        self._num_buffered_bytes += rows.nbytes
        if self._num_buffered_bytes >= self._buffer_bytes:
            self.flush()

    def flush(self) -> None:
        """Deals out what has been gathered."""
        if not self._buffered:
            return
        partitions = np.concatenate(self._partitions)
        order = np.argsort(partitions, kind="stable")
        rows = pa.concat_tables(self._buffered).take(pa.array(order)).combine_chunks()
        self._buffered.clear()
        self._partitions.clear()
        self._num_buffered_bytes = 0
        numbers, starts = np.unique(partitions[order], return_index=True)
        for number, start, end in zip(
            numbers.tolist(), starts.tolist(), [*starts.tolist()[1:], len(order)], strict=True
        ):
            for batch in rows.slice(start, end - start).to_batches():
                self._write(number, batch)

    def _write(self, partition: int, batch: pa.RecordBatch) -> None:
        plain = batch.serialize()
        message = memoryview(pa.compress(plain, _CODEC, asbytes=True))
        self._pieces[partition].append(_Piece(self._end, len(message), plain.size))
        self.num_bytes[partition] += batch.nbytes
        self._end += len(message)
        while message:
            message = message[self._file.write(message) :]

    def num_pieces(self, partition: int) -> int:
        """Returns in how many pieces a partition stands."""
        return len(self._pieces[partition])

    def read(self, partition: int, piece: int) -> pa.RecordBatch:
        """Returns a piece of a partition; threads may read side by side."""
        place = self._pieces[partition][piece]
        compressed = os.pread(self._file.fileno(), place.size, place.offset)
        return pa.ipc.read_record_batch(pa.decompress(compressed, place.plain_size, _CODEC), self._schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
