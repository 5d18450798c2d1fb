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
    """Appends record batches of one schema to a journal file."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("xb")
        self._zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
        self._plain = io.BytesIO()
        self._stream = pa.ipc.new_stream(self._plain, schema)

    def append(self, batch: pa.RecordBatch) -> None:
        """Writes a batch and hands it to the operating system."""
        self._stream.write_batch(batch)
        plain = self._plain.getvalue()
        self._plain.seek(0)
        self._plain.truncate()
        self._file.write(self._zstd.compress(plain))
        self._file.write(self._zstd.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        self._file.flush()

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
