"""Differences by request, step and position against the same figures from NumPy in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factories import make_request, make_trace
from tracekit import connect


def figures(d: np.ndarray) -> tuple[int, int, float, float, float, int]:
    return (
        d.size,
        d.size,
        pytest.approx(float(d.mean()), rel=1e-12, abs=1e-15),
        pytest.approx(float(np.abs(d).max()), rel=1e-12),
        pytest.approx(float((np.expm1(d) - d).mean()), rel=1e-9),
        0,
    )


FIGURES = "num_pairs, num_d, mean_d, max_abs_d, mean_k3, num_infinite"


def compared(folder: Path, queries: list[str]) -> tuple[list[list[tuple[Any, ...]]], np.ndarray]:
    """Two requests of 40 tokens after 3 of the prompt; each two of them are of one step."""
    rng = np.random.default_rng(1)
    sides = -rng.exponential(1, (2, 2, 40)).astype(np.float32)
    steps = np.arange(40) // 2

    def requests(side: int) -> list[Any]:
        return [
            make_request(f"r{i}", token_ids=range(40), logprob=sides[side, i], tokens={"step_id": steps})
            for i in (0, 1)
        ]

    a = make_trace(folder / "a", requests=requests(0), run_id="run a")
    b = make_trace(folder / "b", requests=requests(1), run_id="run b", role="replay", parent=a)
    with connect(a, b) as session:
        found = [session.sql(query).rows() for query in queries]
    return found, sides[1].astype(np.float64) - sides[0].astype(np.float64)


def test_by_request(tmp_path: Path) -> None:
    columns = f"a_run_id, request_id, b_run_id, b_request_id, {FIGURES}, first_divergence"
    (found,), d = compared(tmp_path, [f"SELECT {columns} FROM pair_requests ORDER BY request_id"])
    assert found == [("run a", f"r{i}", "run b", f"r{i}", *figures(d[i]), None) for i in (0, 1)]


def test_first_divergence_of_a_request(tmp_path: Path) -> None:
    a = make_trace(tmp_path / "a", requests=[make_request(token_ids=[1, 2, 3]), make_request("empty", token_ids=[])])
    b = make_trace(
        tmp_path / "b",
        requests=[make_request(token_ids=[1, 9, 3]), make_request("empty", token_ids=[])],
        role="replay",
        parent=a,
    )
    with connect(a, b) as session:
        found = session.sql(
            "SELECT request_id, num_pairs, num_d, first_divergence FROM pair_requests ORDER BY 1"
        ).rows()
    assert found == [("empty", 0, 0, None), ("r0", 2, 1, 1)]


def test_by_step(tmp_path: Path) -> None:
    columns = f"a_run_id, a_step_id, num_requests, {FIGURES}"
    (found,), d = compared(tmp_path, [f"SELECT {columns} FROM pair_steps ORDER BY a_step_id"])
    assert found == [("run a", step, 2, *figures(d[:, 2 * step : 2 * step + 2].ravel())) for step in range(20)]


def test_by_position(tmp_path: Path) -> None:
    (found,), d = compared(tmp_path, [f"SELECT first_position, last_position, {FIGURES} FROM pair_positions"])
    bins = [(2, 3), (4, 7), (8, 15), (16, 31), (32, 63)]
    assert found == [(first, last, *figures(d[:, max(first - 3, 0) : last - 2].ravel())) for first, last in bins]
