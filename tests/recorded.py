"""Reads a recording beside what the engine itself returned, as engine_runs/outputs.py wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tracekit.store import Trace

Row = dict[str, Any]


class Recorded:
    """One engine run.

    Attributes:
        outputs: what the engine returned.
        requests: the trace's requests by external_id, each column its first non-null.
        tokens: sampled tokens by request_id, by position.
        prompt: scored prompt positions by request_id, by position.
    """

    def __init__(self, outputs: Path, trace: Path) -> None:
        self.outputs = json.loads(outputs.read_text())
        self.trace = Trace(trace)
        merged: dict[str, Row] = {}
        for row in self.trace.read("requests").to_pylist():
            known = merged.setdefault(row["request_id"], {})
            known.update({name: value for name, value in row.items() if value is not None and name not in known})
        self.requests = {row["external_id"]: row for row in merged.values()}
        self._by_sample = {(row["external_id"], row.get("sample_index", 0)): row for row in merged.values()}
        self.tokens: dict[str, list[Row]] = {}
        self.prompt: dict[str, list[Row]] = {}
        for row in sorted(self.trace.read("tokens").to_pylist(), key=lambda row: row["position"]):
            (self.prompt if row["is_prompt"] else self.tokens).setdefault(row["request_id"], []).append(row)

    def samples(self) -> list[tuple[Row, dict[str, Any], list[Row]]]:
        """Returns each request of one sample: its row, what the engine returned, its recorded tokens."""
        found = []
        for output in self.outputs["requests"]:
            request = self.requests[output["request_id"]]
            found.append((request, output["samples"][0], self.tokens[request["request_id"]]))
        return found

    def every_sample(self, but: Iterable[str] = ()) -> list[tuple[Row, dict[str, Any], dict[str, Any], list[Row]]]:
        """Returns each sample of each request: its row, the output, the output's sample, its recorded tokens."""
        found = []
        for output in self.outputs["requests"]:
            for sample in () if output["request_id"] in but else output["samples"]:
                request = self._by_sample[output["request_id"], sample["index"]]
                found.append((request, output, sample, self.tokens[request["request_id"]]))
        return found

    def events(self, kind: str) -> list[Row]:
        return [row for row in self.trace.read("events").to_pylist() if row["kind"] == kind]


def close(value: float, expected: float) -> bool:
    """Whether a figure agrees with the engine's, as far as float32 arithmetic goes."""
    return abs(value - expected) <= 1e-5 + 1e-5 * abs(expected)
