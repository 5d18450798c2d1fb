"""Writes a side as a trace, through the store and nothing else of tracekit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from side import Side

from tracekit.store import Manifest, TraceWriter, create_trace

_OWN = ("run_id", "writer")


def write(side: Side, path: Path, role: Literal["record", "replay", "trainer"], parent: Manifest | None) -> Manifest:
    """Writes a side to a new trace.

    Args:
        side: what to write.
        path: where; must not exist.
        role: of the trace.
        parent: of a replay or a trainer's trace.
    """
    manifest = create_trace(path, role, parent=parent.trace_id if parent else None)
    tokens = list(side.tokens().values())
    with TraceWriter(path, run_id=f"run-{path.name}", writer="w0") as writer:
        writer.append("runs", _run(side, role))
        _append(writer, "requests", (side.request_of(name) for name in side.names))
        _append(writer, "outcomes", (_outcome(side, name) for name in side.names))
        _append(writer, "tokens", tokens)
        if role != "trainer":
            _append(writer, "steps", side.steps)
        _append(writer, "events", side.events)
        _append(writer, "routes", side.routes)
        if side.keeps_rows and role != "trainer":
            _append_rows(writer, side, tokens)
    return manifest


def _run(side: Side, role: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for row in side.recording.runs:
        merged.update({name: value for name, value in row.items() if value is not None and name not in merged})
    if role == "trainer":
        # A trainer's trace has no engine.
        merged = {name: merged.get(name) for name in ("model", "model_fingerprint", "tokenizer_hash", "started_ns")}
    return {**{k: v for k, v in merged.items() if k not in _OWN}, **side.run, "writer": "w0", "role": role}


def _outcome(side: Side, name: str) -> dict[str, Any]:
    return {**side.recording.outcomes[name], **side.outcome.get(name, {})}


def _append(writer: TraceWriter, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
    listed = list(rows)
    if listed:
        names = {name: None for row in listed for name in row if name not in _OWN}
        writer.append(table, {name: [row.get(name) for row in listed] for name in names})


def _append_rows(writer: TraceWriter, side: Side, tokens: list[dict[str, Any]]) -> None:
    request_ids = {side.recording.requests[name]["request_id"]: name for name in side.names}
    dtype = side.run.get("head_output_dtype", "bfloat16")
    for row in tokens:
        key = (request_ids[row["request_id"]], row["output_index"])
        changed = side.row(key)
        logits = side.recording.logits(key) if changed is None else changed
        place = {name: [row[name]] for name in ("request_id", "output_index", "position")}
        writer.append("logits", {**place, "logits": [list(logits)], "source_dtype": dtype})
        writer.append("hidden", {**place, "hidden": [list(side.recording.hidden(key))], "source_dtype": "bfloat16"})
