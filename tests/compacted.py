"""Traces of many small parts, and what a compaction must leave as it was."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np

from tracekit.fingerprint import prompt_hash
from tracekit.schema import table_names
from tracekit.store import Trace, TraceWriter, create_trace


def many_parts(path: Path, num_requests: int = 24, seed: int = 0) -> Path:
    """Writes a trace with rows in all tables, of two writers and three runs, each part a few rows."""
    chance = random.Random(seed)
    create_trace(path, "record")
    for name, run_id in (("w0", "run"), ("w1", "run"), ("w1", "again")):
        with TraceWriter(path, run_id=run_id, writer=name, flush_seconds=3600) as writer:
            for number in range(num_requests):
                writer.append("runs", {"writer": [f"{name}-{number}"], "role": "record"})
                for table, rows in _rows(name, number, chance).items():
                    writer.append(table, rows)
                if number % 2:
                    writer.seal()
    return path


def _rows(writer: str, number: int, chance: random.Random) -> dict[str, dict[str, Any]]:
    request_id = f"q{number}"
    prompt = [chance.randrange(50) for _ in range(4)]
    known = {"external_id": f"x{number}"} if writer == "w0" else {"prompt_hash": prompt_hash(prompt)}
    places = chance.sample(range(200), 5)
    key = {"request_id": request_id, "position": places}
    values = np.array([[chance.gauss(0, 1) for _ in range(6)] for _ in places], np.float32)
    values[0, 0] = np.nan
    values[1, 1] = -np.inf
    index = {"output_index": places}
    return {
        "requests": {"request_id": [request_id], **known},
        "outcomes": {"request_id": [request_id], "num_output_tokens": [200]},
        "steps": {"step_id": [number], "request_ids": [[request_id, "other"]]},
        "tokens": {
            **key,
            **index,
            "token_id": places,
            "logprob": values[:, 2],
            "top_logits": values,
            "top_token_ids": [[chance.randrange(50) for _ in range(place % 4)] for place in places],
            "forced": False,
            "is_prompt": False,
        },
        "logits": {**key, **index, "logits": values, "source_dtype": "float32"},
        "hidden": {**key, **index, "hidden": values, "source_dtype": "float32"},
        "routes": {**key, "experts": [[[place, 1], [2]] for place in places]},
        "events": {"time_ns": [chance.randrange(3)], "kind": "paused", "attributes": chance.choice([None, "{}"])},
    }


def content(path: Path) -> dict[str, list[str]]:
    """Returns for each table a hash of each of its rows, sorted: equal rows count as often as they stand there."""
    trace = Trace(path)
    return {
        table: sorted(hashlib.sha256(repr(row).encode()).hexdigest() for row in trace.read(table).to_pylist())
        for table in table_names()
    }


def files(root: Path) -> dict[str, bytes]:
    """Returns the files of a trace; locks, which are empty, apart."""
    found = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in found if path.suffix != ".lock"}
