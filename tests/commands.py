"""The command line as a user runs it, and what `explain` says of two traces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tracekit


def command(*arguments: str | Path, env: Mapping[str, str] | None = None) -> str:
    """Runs `tracekit` and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tracekit.cli.main", *map(str, arguments)],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def explained(a: Path, b: Path, *options: str | Path) -> dict[str, Any]:
    """Returns what `tracekit explain` says, once each finding's SQL returned the rows that it counts."""
    document: dict[str, Any] = json.loads(command("explain", a, b, "--format", "json", *options))
    with tracekit.connect(a, b) as session:
        for finding in document["findings"]:
            assert len(session.sql(finding["sql"]).rows()) == finding["num_tokens"], finding["cause"]
    return document


def as_trainer(rollout: Path, scores: Path, out: Path, **log: Any) -> Path:
    """Writes the processed logprobs of a replay as those that a trainer computed."""
    with tracekit.connect(scores) as session:
        query = "SELECT request_id, list(processed_logprob ORDER BY output_index) FROM tokens GROUP BY ALL"
        values = dict(session.sql(query).rows())
    with tracekit.TrainerTrace(out, source=rollout) as trainer:
        trainer.log(list(values), list(values.values()), **log)
    return out
