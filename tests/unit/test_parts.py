"""How part files are compressed, encoded and documented."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tracekit.schema import arrow_schema, table_names
from tracekit.store import TraceWriter, create_trace

_TWIN = Path(__file__).parents[1] / "golden" / "v1.0" / "trace.json"
GOLDEN = json.loads(_TWIN.read_text(encoding="utf-8").replace('"-inf"', "-Infinity"))


def documented_fields(schema: pa.Schema) -> list[tuple[str, pa.DataType, bool, dict[bytes, bytes]]]:
    return [(field.name, field.type, field.nullable, field.metadata) for field in schema]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One part a table, written by the real writer, with a value in every column."""
    root = tmp_path_factory.mktemp("parts") / "a.trace"
    create_trace(root, "record")
    with TraceWriter(root, run_id="golden-run", writer="w") as writer:
        for table, rows in GOLDEN["tables"].items():
            writer.append(table, {column: [value] for column, value in rows[0].items()})
    return {table: root / table / "w-000000.parquet" for table in table_names()}


def column_chunks(path: Path) -> Iterator[Any]:
    group = pq.ParquetFile(path).metadata.row_group(0)
    return (group.column(index) for index in range(group.num_columns))


@pytest.mark.parametrize("table", table_names())
class TestPartFiles:
    def test_columns_are_zstd(self, parts: dict[str, Path], table: str) -> None:
        assert {chunk.compression for chunk in column_chunks(parts[table])} == {"ZSTD"}

    def test_floats_are_split_into_byte_streams_and_the_rest_is_not(self, parts: dict[str, Path], table: str) -> None:
        chunks = {chunk.path_in_schema: chunk for chunk in column_chunks(parts[table])}
        floats = {path for path, chunk in chunks.items() if chunk.physical_type in ("FLOAT", "DOUBLE")}
        expected = {
            f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
            for field in arrow_schema(table)
            if "float" in str(field.type) or "double" in str(field.type)
        }
        assert floats == expected
        for path, chunk in chunks.items():
            if path in floats:
                assert "BYTE_STREAM_SPLIT" in chunk.encodings, path
                assert not chunk.has_dictionary_page, path
            else:
                assert "BYTE_STREAM_SPLIT" not in chunk.encodings, path
                assert chunk.has_dictionary_page == (chunk.physical_type != "BOOLEAN"), path

    def test_docs_and_version_travel_with_the_file(self, parts: dict[str, Path], table: str) -> None:
        metadata = pq.read_metadata(parts[table]).metadata
        assert metadata[b"tracekit.format_version"] == b"1.2"
        assert metadata[b"tracekit.table"] == table.encode()
        assert documented_fields(pq.read_schema(parts[table])) == documented_fields(arrow_schema(table))
        assert pq.read_schema(parts[table]).field("run_id").metadata[b"since"] == b"1.0"
