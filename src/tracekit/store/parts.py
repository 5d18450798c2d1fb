"""Immutable Parquet parts: written aside, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_ZSTD_LEVEL = 6
# Whole rows are many bytes: at level 1 they are no larger, and written three times as quickly.
_ZSTD_LEVEL_OF_ROWS = 1
_TABLES_OF_ROWS = ("hidden", "logits")


def write_part(rows: pa.Table, path: Path) -> None:
    """Writes one part so that a reader sees either nothing or the whole file."""
    part = PartWriter(path, rows.schema)
    try:
        part.write(rows)
        part.finish()
    except BaseException:
        part.discard()
        raise


class PartWriter:
    """A part in the making, written aside: readers see nothing of it before it is finished.

    After any failure it is of no further use than to be discarded.

    Raises:
        OSError: from each of its methods but `discard`.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(exist_ok=True)
        self._path = path
        self._aside = path.parent / f".{path.name}.{os.getpid()}"
        self._sink = self._aside.open("wb")
        try:
            self._parquet = pq.ParquetWriter(
                self._sink, schema, compression="zstd", compression_level=_level(path), **_encodings(schema)
            )
        except BaseException:
            self._remove(self._sink.close)
            raise

    def write(self, rows: pa.Table) -> None:
        """Writes rows as a row group of their own."""
        self._parquet.write_table(rows)

    def finish(self) -> None:
        """Brings it to the disk and gives it its name."""
        os.replace(self.complete(), self._path)

    def complete(self) -> Path:
        """Brings it to the disk, and returns under which name it stands there: readers still do not see it."""
        self._parquet.close()
        self._sink.flush()
        os.fsync(self._sink.fileno())
        self._sink.close()
        return self._aside

    def discard(self) -> None:
        """Removes what was written of it."""
        self._remove(self._parquet.close, self._sink.close)

    def _remove(self, *closers: Callable[[], None]) -> None:
        for close in closers:
            with contextlib.suppress(OSError, pa.ArrowException):  # it still writes, perhaps to a full disk
                close()
        self._aside.unlink(missing_ok=True)


def _level(path: Path) -> int:
    """Returns the ZSTD level of a part, which stands in its table's folder."""
    return _ZSTD_LEVEL_OF_ROWS if path.parent.name in _TABLES_OF_ROWS else _ZSTD_LEVEL


def _encodings(schema: pa.Schema) -> dict[str, object]:
    """Floats split into byte streams (a widened bf16 then costs about 1.3 bytes), the rest in dictionaries."""
    split: list[str] = []
    dictionary: list[str] = []
    for field in schema:
        path, leaf = _leaf(field)
        (split if pa.types.is_floating(leaf) else dictionary).append(path)
    # Least and largest entry of all lists of a part say nothing that a query could use.
    scalars = [field.name for field in schema if not pa.types.is_list(field.type)]
    return {"use_byte_stream_split": split, "use_dictionary": dictionary, "write_statistics": scalars}


def _leaf(field: pa.Field) -> tuple[str, pa.DataType]:
    path, leaf = field.name, field.type
    while pa.types.is_list(leaf):
        path, leaf = f"{path}.list.element", leaf.value_type
    return path, leaf
