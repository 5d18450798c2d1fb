"""Writes the golden trace of the current format version: a small trace with every column, beside its JSON twin.

    python tools/make_golden.py OUT        makes OUT/trace and OUT/trace.json

Run once for a released version; afterwards the files never change, and every later release must read them.
The twin is written from the literal values below, not from what was read back.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tracekit.schema import Column, table, table_names
from tracekit.store import TraceWriter, create_trace
from tracekit.store.manifest import Manifest

RUN = "golden-run"
# Where a value that only shows the type would mislead, or a value is easy to get wrong.
TELLING: dict[str, Any] = {
    "role": "record",
    "kind": "paused",
    "engine": "vllm",
    "request_id": "request-0",
    "prompt_token_ids": [1, 2, 49151],
    "prompt_text": "naïve “quotes”\n\t\\ 日本 🙂",
    "tags": '{"user": "a|b", "n": 1}',
    "stop": ["\n\n", ""],
    "temperature": 0.8,
    "top_p": 0.95,
    "token_id": 49151,
    "logit": 17.25,
    "logsumexp": 18.1238956451416,
    "logprob": -0.8738956451416016,
    "processed_logprob": -math.inf,
    "top_token_ids": [49151, 11, 7],
    "top_logits": [17.25, 17.25, -3.0],
    "parent_top_logits": [17.375, 17.125, -2.984375],
    "logits": [0.0, -0.0, 1.1754943508222875e-38, 3.3895313892515355e38, -math.inf],
    "hidden": [0.10009765625, -1.5],
    "experts": [[3, 1], [0, 2]],
    "time_ns": 1_767_225_600_000_000_001,
    "started_ns": 1_767_225_600_123_456_789,
    "step_id": 2**53 + 1,
}


def full_row(name: str, index: int) -> dict[str, Any]:
    """Returns a row with a value in every column."""
    return {column.name: _value(column, index) for column in table(name).columns}


def sparse_row(name: str, index: int) -> dict[str, Any]:
    """Returns a row that is null wherever it may be."""
    return {column.name: None if column.nullable else _value(column, index) for column in table(name).columns}


def _value(column: Column, index: int) -> Any:
    if column.name == "run_id":
        return RUN
    if column.name in TELLING:
        return TELLING[column.name]
    by_type: dict[str, Any] = {
        "bool": index % 2 == 0,
        "int32": index + 1,
        "int64": index + 1,
        "float32": index + 0.5,
        "float64": index + 0.1,
        "string": f"{column.name}-{index}",
        "json": f'{{"{column.name}": {index}}}',
        "list<int32>": [index, index + 1],
        "list<float32>": [index + 0.5],
        "list<string>": [f"{column.name}-{index}"],
    }
    return by_type[column.type]


def append(writer: TraceWriter, name: str, row: dict[str, Any]) -> None:
    writer.append(name, {column: [value] for column, value in row.items()})


def make(out: Path) -> None:
    out.mkdir(parents=True)
    root = out / "trace"
    manifest = replace(create_trace(root, "record"), trace_id="00000000000000000000000000000001", parent="0" * 32)
    (root / "manifest.json").write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in table_names()}
    with TraceWriter(root, run_id=RUN, writer="worker-1") as writer:
        for index, make_row in enumerate((full_row, sparse_row)):
            for name, kept in rows.items():
                kept.append(make_row(name, index))
                append(writer, name, kept[-1])
            writer.seal()
    killed = TraceWriter(root, run_id=RUN, writer="zz-killed")
    rows["tokens"].append(full_row("tokens", 2))
    append(killed, "tokens", rows["tokens"][-1])
    killed.flush()
    whole = next((root / "journal" / "tokens").iterdir())
    end = whole.stat().st_size
    append(killed, "tokens", full_row("tokens", 3))
    killed.flush()
    with whole.open("r+b") as journal:  # as if the process had been killed in the middle of the second flush
        journal.truncate((end + whole.stat().st_size) // 2)
    for file in (root / "journal").glob("*.lease"):
        file.unlink()
    twin = {"manifest": asdict(Manifest.read(root)), "tables": rows}
    text = json.dumps(_finite(twin), indent=1, ensure_ascii=False, allow_nan=False)
    (out / "trace.json").write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON has no infinities: they are written as strings."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=Path)
    make(parser.parse_args().out)
