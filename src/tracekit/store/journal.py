"""The journal of rows that are in no part yet: an Arrow IPC stream inside one zstd stream.

Each flush ends a zstd block, so whatever was flushed can be read although the stream has no end.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import zstandard

_ZSTD_LEVEL = 1
_CHUNK = 1 << 20


class JournalWriter:
    """Appends record batches of one schema to a journal file; after a failed write it is of no further use."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(exist_ok=True)
        self.path = path
        # Unbuffered: bytes that could not be written must not reach the file later, behind the writer's back.
        self._file = path.open("xb", buffering=0)
        self._zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
        self._plain = io.BytesIO()
        self._stream = pa.ipc.new_stream(self._plain, schema)

    def append(self, batch: pa.RecordBatch) -> None:
        """Writes a batch and hands it to the operating system.

        Raises:
            OSError: it could not be written; the journal can be read up to the batch before.
        """
        self._stream.write_batch(batch)
        plain = self._plain.getvalue()
        self._plain.seek(0)
        self._plain.truncate()
        compressed = self._zstd.compress(plain) + self._zstd.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        rest = memoryview(compressed)
        while rest:
            rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path) -> Iterator[pa.RecordBatch]:
    """Yields the whole batches of a journal, also of one that was cut off in mid-write."""
    plain = _decompress(path)
    if not plain:
        return
    try:
        with pa.ipc.open_stream(pa.BufferReader(plain)) as stream:
            yield from stream
    except (pa.ArrowInvalid, OSError):
        return  # The stream ends where its writer was killed: what follows the last whole batch was never flushed.


def _decompress(path: Path) -> bytes:
    # decompressobj gives all flushed bytes of an unfinished frame; stream_reader loses some.
    plain = bytearray()
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK):
            try:
                plain += decompressor.decompress(chunk)
            except zstandard.ZstdError:
                break
    return bytes(plain)
