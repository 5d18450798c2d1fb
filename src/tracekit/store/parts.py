"""Immutable Parquet parts: written aside, flushed to disk, then renamed."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_ZSTD_LEVEL = 6
# Whole rows are many bytes: at level 1 they are no larger, and written three times as quickly.
_ZSTD_LEVEL_OF_ROWS = 1
_TABLES_OF_ROWS = ("hidden", "logits")


def write_part(rows: pa.Table, path: Path) -> None:
    """Writes one part so that a reader sees either nothing or the whole file."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    try:
        with temporary.open("wb") as sink:
            pq.write_table(rows, sink, compression="zstd", compression_level=_level(path), **_encodings(rows.schema))
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
