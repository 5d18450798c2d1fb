"""What was recorded of a program that changes an engine's weights and keeps books of it, beside these books."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tracekit.store import Trace


class WeightRecording:
    """A program's report, and what was recorded of it."""

    def __init__(self, report: dict[str, Any], trace: Path) -> None:
        self.report = report
        self.trace = Trace(trace)
        rows = self.trace.read("requests").to_pylist()
        self.ids = {row["external_id"]: row["request_id"] for row in rows if row["external_id"] is not None}
        self.names = {request_id: name for name, request_id in self.ids.items()}
        self.steps = sorted(self.trace.read("steps").to_pylist(), key=lambda row: row["step_id"])
        self.tokens = self.trace.read("tokens").to_pylist()
        self.events = sorted(self.trace.read("events").to_pylist(), key=lambda row: row["time_ns"])

    def tokens_of(self, name: str) -> list[dict[str, Any]]:
        """Returns a request's sampled tokens in order."""
        rows = [row for row in self.tokens if row["request_id"] == self.ids[name] and not row["is_prompt"]]
        return sorted(rows, key=lambda row: row["output_index"])

    def updates(self) -> list[dict[str, Any]]:
        """Returns the attributes of `weights_updated`, with the step."""
        rows = [row for row in self.events if row["kind"] == "weights_updated"]
        return [{**json.loads(row["attributes"]), "step": row["step_id"]} for row in rows]

    def happened(self, *kinds: str) -> list[dict[str, Any]]:
        """Returns events as the programs write theirs down."""
        found = []
        for row in self.events:
            if row["kind"] in kinds:
                request = {} if row["request_id"] is None else {"request": self.names[row["request_id"]]}
                attributes = json.loads(row["attributes"] or "{}")
                found.append({"kind": row["kind"], "step": row["step_id"], **request, **attributes})
        return found


def check_tokens(books: WeightRecording) -> int:
    """Checks every sampled token against the books; returns how many of them attended to older weights."""
    stale = 0
    for name, request in books.report["requests"].items():
        recorded = [
            {
                "version": row["weight_version"],
                "label": row["weight_label"],
                "partial": row["weights_partial"],
                "kv": row["kv_weight_version_min"],
                "step": row["step_id"],
                "token": row["token_id"],
            }
            for row in books.tokens_of(name)
        ]
        assert recorded == request["expected"], name
        stale += sum(row["kv"] < row["version"] for row in recorded)
    return stale


def check_steps(books: WeightRecording) -> None:
    """Checks that steps have the weights of their tokens."""
    of_step = {row["step_id"]: row for row in books.steps}
    assert sorted(of_step) == list(range(len(books.steps)))
    for row in books.tokens:
        step = of_step[row["step_id"]]
        assert (step["weight_version"], step["weight_label"]) == (row["weight_version"], row["weight_label"])


def check_event_of_each_version(books: WeightRecording) -> None:
    """Checks that each version but the first has its event, at its first step; that the last one has no step."""
    updates = books.updates()
    last = books.steps[-1]["weight_version"]
    assert [(update["old_version"], update["version"]) for update in updates] == [(v, v + 1) for v in range(last + 1)]
    for update in updates[:-1]:
        first = min(row["step_id"] for row in books.steps if row["weight_version"] == update["version"])
        assert update["step"] == first
        token = next(row for row in books.tokens if row["step_id"] == first)
        assert (update["label"], update["partial"]) == (token["weight_label"], token["weights_partial"])
    assert updates[-1]["step"] is None


def check_checksums(books: WeightRecording) -> None:
    """Checks the checksums of head and embedding at each version that a step had."""
    loaded = [json.loads(row["attributes"]) for row in books.events if row["kind"] == "weights_loaded"]
    updates = [update for update in books.updates() if update["step"] is not None]
    recorded = [*loaded, *updates]
    assert [event["checksums"] for event in recorded] == books.report["checksums"]
    assert [event["version"] for event in recorded] == list(range(len(recorded)))
    assert [event["old_checksums"] for event in updates] == books.report["checksums"][:-1]
    assert all(event["head_is_embedding"] for event in recorded)


def tensor_names(model: Path) -> list[str]:
    """Returns the names of a checkpoint's tensors, sorted."""
    names: list[str] = []
    for file in model.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names += tensors.keys()
    return sorted(names)


def names_hash(names: list[str]) -> str:
    """Returns the hash of names as the format defines it."""
    return hashlib.blake2b(b"".join(name.encode() + b"\0" for name in sorted(names)), digest_size=16).hexdigest()
