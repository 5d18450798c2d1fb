"""The soak of `make soak`, 20 seconds of it: a recorded server under 64 streaming clients loses nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import soak

pytestmark = pytest.mark.engine


def test_rows_are_the_tokens_that_clients_got(
    shallow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Room for all there can be: whether the writer keeps up, with other tests beside it, is for `make soak` to tell.
    monkeypatch.setenv("TRACEKIT_RECORD_MAX_QUEUE_MIB", "8192")
    figures = soak.soak(shallow_model, tmp_path, seconds=20.0, num_clients=64)
    assert soak.faults(figures) == []
    assert figures["num_requests"] >= 64
    assert figures["num_left"] >= 4, "no client left in the middle"
    assert figures["num_tokens"] > 64 * 8
    assert figures["num_processes"] >= 4, "memory was not taken of all the engine's processes"
