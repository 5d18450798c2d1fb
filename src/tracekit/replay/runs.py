"""The `runs` row of a replay: what computed its figures, from what, and how."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracekit.fingerprint import chat_template_hash, model_fingerprint, tokenizer_hash
from tracekit.replay.parent import merge_rows
from tracekit.replay.workers.base import Facts
from tracekit.store import Trace
from tracekit.version import __version__


@dataclass(frozen=True)
class Origin:
    """What a replay was asked for.

    Attributes:
        backend: its name.
        model: as it was named.
        options: of the driver and of the backend.
    """

    backend: str
    model: Path | None
    options: Mapping[str, Any]

    def described(self) -> dict[str, Any]:
        """Returns what a replay must be asked for again so that it goes on with this one."""
        fingerprint = None if self.model is None else model_fingerprint(self.model)
        return {"backend": self.backend, "model": str(self.model), "model_fingerprint": fingerprint, **self.options}


def read_runs(trace: Trace) -> list[dict[str, Any]]:
    """Returns a trace's rows of `runs`, those of one run's processes merged into one."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in trace.read("runs").to_pylist():
        rows.setdefault(row["run_id"], []).append(row)
    return [merge_rows(of_run) for of_run in rows.values()]


def runs_row(origin: Origin, facts: Facts, writer: str, run_id: str, parent_run_id: str) -> dict[str, Any]:
    """Returns the columns of one run, which stands for one run of the parent."""
    row: dict[str, Any] = {
        "run_id": run_id,
        "writer": writer,
        "role": "replay",
        "process": "all",
        "process_id": os.getpid(),
        "hostname": socket.gethostname(),
        "started_ns": time.time_ns(),
        "tracekit_version": __version__,
        "backend": origin.backend,
        "mode": facts.mode,
        "options": json.dumps({**origin.options, "parent_run_id": parent_run_id}),
        "vocab_size": facts.vocab_size,
    }
    if origin.model is not None:
        row |= {
            "model": str(origin.model),
            "model_fingerprint": model_fingerprint(origin.model),
            "tokenizer": str(origin.model),
            "tokenizer_hash": tokenizer_hash(origin.model),
            "chat_template_hash": chat_template_hash(origin.model),
        }
    return row | dict(facts.description)
