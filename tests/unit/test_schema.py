"""The column definitions, and the Arrow schemas and batches made from them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tracekit.errors import TraceFormatError
from tracekit.schema import FORMAT_VERSION, arrow_schema, record_batch, table, table_names

DEFINITIONS = Path(__file__).parents[2] / "schemas" / "v1"
TABLES = json.loads((DEFINITIONS / "format.json").read_text())["tables"]

# Stated here a second time, so that a slip in the package shows.
ARROW_NAMES = {
    "bool": "bool",
    "int32": "int32",
    "int64": "int64",
    "float32": "float",
    "float64": "double",
    "string": "string",
    "json": "string",
    "list<int32>": "list<item: int32>",
    "list<float32>": "list<item: float>",
    "list<string>": "list<item: string>",
    "list<list<int32>>": "list<item: list<item: int32>>",
}


def definition(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DEFINITIONS / f"{name}.json").read_text())
    return content


def test_every_definition_file_is_a_table_of_the_format() -> None:
    assert sorted(path.stem for path in DEFINITIONS.glob("*.json")) == sorted([*TABLES, "format"])
    assert list(table_names()) == TABLES
    assert FORMAT_VERSION == "1.2"


@pytest.mark.parametrize("name", TABLES)
def test_definition_is_complete(name: str) -> None:
    content = definition(name)
    assert content["table"] == name
    assert content["row"]
    names = [column["name"] for column in content["columns"]]
    assert len(names) == len(set(names))
    assert content["key"][0] == "run_id"
    assert set(content["key"]) <= set(names)
    for column in content["columns"]:
        assert column.keys() <= {"name", "type", "nullable", "meaning", "since", "unit", "shape", "values"}
        assert re.fullmatch(r"[a-z][a-z0-9_]*", column["name"])
        assert column["type"] in ARROW_NAMES, column["name"]
        assert isinstance(column["nullable"], bool)
        assert column["meaning"].strip().endswith("."), column["name"]
        assert re.fullmatch(r"1\.[0-9]+", column["since"])
        assert ("list" in column["type"]) == ("shape" in column), column["name"]
        assert column["nullable"] or column["since"] == "1.0", "a column of a minor version must be nullable"


@pytest.mark.parametrize("name", TABLES)
def test_arrow_schema_equals_the_definition(name: str) -> None:
    schema = arrow_schema(name)
    found = [(field.name, str(field.type), field.nullable) for field in schema]
    columns = definition(name)["columns"]
    assert found == [(column["name"], ARROW_NAMES[column["type"]], column["nullable"]) for column in columns]
    for column in columns:
        docs = {key.encode(): column[key].encode() for key in ("meaning", "since", "unit", "shape") if key in column}
        assert schema.field(column["name"]).metadata == docs
    assert schema.metadata == {b"tracekit.format_version": b"1.2", b"tracekit.table": name.encode()}


def test_units_stand_in_names() -> None:
    for name in TABLES:
        for column in definition(name)["columns"]:
            assert ("ns since" in column.get("unit", "")) == column["name"].endswith("_ns"), column["name"]


def test_unknown_table_names_the_nearest() -> None:
    with pytest.raises(TraceFormatError, match=r"no table 'token' \(did you mean 'tokens'\?\)"):
        table("token")


class TestRecordBatch:
    def test_scalars_stand_for_all_rows_and_missing_columns_are_null(self) -> None:
        batch = record_batch("events", {"run_id": "r", "time_ns": [1, 2], "kind": "paused"})
        assert batch.to_pylist() == [
            {"run_id": "r", "time_ns": t, "kind": "paused", "request_id": None, "step_id": None, "attributes": None}
            for t in (1, 2)
        ]

    @pytest.mark.parametrize(("shape", "expected"), [((2, 2), [[0, 1], [2, 3]]), ((2, 0), [[], []]), ((0, 2), [])])
    def test_two_dimensional_arrays_become_lists(self, shape: tuple[int, int], expected: list[list[int]]) -> None:
        num_rows = shape[0]
        ids = np.arange(shape[0] * shape[1], dtype=np.int64).reshape(shape)
        fixed = {"run_id": "r", "request_id": "q", "forced": False, "is_prompt": False}
        rows = {"position": range(num_rows), "token_id": [7] * num_rows}
        columns = {**fixed, **{key: list(value) for key, value in rows.items()}, "top_token_ids": ids}
        batch = record_batch("tokens", columns)
        assert batch.column("top_token_ids").to_pylist() == expected

    def test_non_contiguous_arrays_keep_their_order(self) -> None:
        logits = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32).T
        columns = {"run_id": "r", "request_id": "q", "position": [0, 1], "logits": logits, "source_dtype": "float32"}
        assert record_batch("logits", columns).column("logits").to_pylist() == [[1.0, 3.0], [2.0, 4.0]]

    def test_floats_keep_infinities_and_nan_apart_from_null(self) -> None:
        values = np.array([-np.inf, np.nan, 0.5], dtype=np.float32)
        fixed = {"run_id": "r", "request_id": "q", "forced": False, "is_prompt": False, "token_id": 1}
        column = record_batch("tokens", {**fixed, "position": [0, 1, 2], "processed_logprob": values}).column(
            "processed_logprob"
        )
        assert column.null_count == 0
        np.testing.assert_array_equal(column.to_numpy(zero_copy_only=False), values)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"time_ns": [1], "knid": "x", "kind": "x"}, r"'events' has no column 'knid' \(did you mean 'kind'\?\)"),
            ({"time_ns": [1]}, "column 'kind' must not be null, and was not given"),
            ({"time_ns": [1, 2], "kind": ["x", None]}, "column 'kind' must not be null; 1 are"),
            ({"time_ns": [1, 2], "kind": ["x"]}, "column 'kind' has 1 values, others have 2"),
            ({"time_ns": ["noon"], "kind": "x"}, "column 'time_ns' is not int64"),
            ({"time_ns": [1], "kind": "x", "step_id": np.array([0.5])}, "column 'step_id' is not int64"),
            ({"time_ns": [1], "kind": "x", "attributes": [{"a": 1}]}, "column 'attributes' is not json"),
        ],
    )
    def test_errors_name_table_and_column(self, columns: dict[str, Any], message: str) -> None:
        with pytest.raises(TraceFormatError, match=message):
            record_batch("events", {"run_id": "r", **columns})

    def test_integers_are_not_cut_off(self) -> None:
        row = {"run_id": "r", "request_id": "q", "position": [2**31], "source_dtype": "float32", "logits": [[1.0]]}
        with pytest.raises(TraceFormatError, match="column 'position' is not int32"):
            record_batch("logits", row)

    def test_accepts_arrow_arrays(self) -> None:
        kinds = pa.chunked_array([["paused"], ["resumed"]])
        batch = record_batch("events", {"run_id": "r", "time_ns": pa.array([1, 2], pa.int32()), "kind": kinds})
        assert batch.column("kind").to_pylist() == ["paused", "resumed"]
        assert batch.schema.field("time_ns").type == pa.int64()
