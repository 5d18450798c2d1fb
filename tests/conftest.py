"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MODEL_VARIABLE = "TRACEKIT_TEST_MODEL"

# Engines of tests that run side by side would all be bound to the first core.
_worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if _worker:
    cores = sorted(os.sched_getaffinity(0))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", str(cores[int(_worker.removeprefix("gw")) % len(cores)]))


@pytest.fixture(scope="session")
def model_path() -> Path:
    """A folder with a small causal language model in Hugging Face format, tokenizer included."""
    value = os.environ.get(MODEL_VARIABLE)
    if not value:
        pytest.fail(f"set {MODEL_VARIABLE} to the folder of a small causal language model (`make test` does it)")
    path = Path(value)
    if not (path / "config.json").is_file():
        pytest.fail(f"{MODEL_VARIABLE}={value} is not a model folder: it has no config.json")
    return path
