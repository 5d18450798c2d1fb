"""Runs a program of integration/engine_runs/ in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_RUNS = Path(__file__).parent / "integration" / "engine_runs"


def run_engine(
    name: str, *args: str | Path, record_to: Path | None = None, env: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs engine_runs/NAME.py, under `tracekit record` where `record_to` is given; shows its output on failure."""
    command = [sys.executable, str(_RUNS / f"{name}.py"), *map(str, args)]
    if record_to is not None:
        command = [
            sys.executable,
            "-m",
            "tracekit.cli.main",
            "record",
            "-o",
            str(record_to),
            "--strict",
            "--",
            *command,
        ]
    quiet = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        command, env=quiet | dict(os.environ) | (env or {}), capture_output=True, text=True, start_new_session=True
    )
    if check and result.returncode != 0:
        raise AssertionError(f"{name} ended with {result.returncode}\n{result.stdout}\n{result.stderr[-6000:]}")
    return result
