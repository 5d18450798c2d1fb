"""Staleness, the lag of weights, apart from the mismatch of engine and trainer at lag 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from factories import make_request, make_trace
from tracekit import Session, TrainerTrace, connect

SAMPLED_UNDER = [0, 0, 1, 2, 2, 2]
D = np.array([0.5, -0.25, 0.125, 0.0625, -0.0625, 0.03125])


def compared(folder: Path, weight_version: int | None) -> Session:
    tokens = {
        "weight_version": SAMPLED_UNDER,
        "kv_weight_version_min": [0, 0, 0, 1, 1, 2],
        "weights_partial": [False, True, False, False, False, False],
    }
    one = make_request("one", token_ids=range(6), logprob=-2.0, tokens=tokens)
    greedy = make_request("greedy", token_ids=[1], logprob=-1.0, temperature=0.0, tokens={"weight_version": [2]})
    given = make_request("given", token_ids=[1], logprob=-1.0, forced=True, tokens={"weight_version": [2]})
    rollout = make_trace(folder / "rollout", requests=[one, greedy, given])
    with TrainerTrace(folder / "trainer", rollout) as trace:
        logprobs = [-2.0 + D, [-3.0], [-3.0]]
        mask = [[True, True, True, True, True, False], [True], [True]]
        trace.log(["one", "greedy", "given"], logprobs, weight_version=weight_version, trainer_step=9, loss_mask=mask)
    return connect(rollout, folder / "trainer")


def test_lags(tmp_path: Path) -> None:
    with compared(tmp_path, 2) as session:
        found = session.sql(
            "SELECT output_index, lag, kv_lag, d_processed, weights_partial, policy, trainer_step, loss_mask "
            "FROM staleness WHERE request_id = 'one' ORDER BY 1"
        ).rows()
    lags, kv_lags = [2, 2, 1, 0, 0, 0], [2, 2, 2, 1, 1, 0]
    partial, kept = [False, True, False, False, False, False], [True] * 5 + [False]
    columns = zip(range(6), lags, kv_lags, D.tolist(), partial, kept, strict=True)
    assert found == [(*row[:5], "current", 9, row[5]) for row in columns]


def test_figures_by_lag_are_those_of_numpy(tmp_path: Path) -> None:
    with compared(tmp_path, 2) as session:
        found = {row["lag"]: row for row in session.sql("FROM staleness_by_lag").dicts()}
    # Neither the masked token, nor the greedy and the given ones.
    parts = {0: D[3:5], 1: D[2:3], 2: D[:2]}
    assert sorted(found) == sorted(parts)
    k3 = {lag: float(np.mean(np.exp(d) - 1 - d)) for lag, d in parts.items()}
    for lag, d in parts.items():
        row = found[lag]
        assert (row["num_requests"], row["num_tokens"], row["num_partial"]) == (1, len(d), 1 if lag == 2 else 0)
        assert row["kl"] == pytest.approx(np.mean(-d), abs=1e-15)
        assert row["k3_kl"] == pytest.approx(k3[lag], rel=1e-9)
        assert row["k3_kl_over_lag_0"] == pytest.approx(k3[lag] - k3[0], rel=1e-9, abs=1e-15)
        assert row["logprob_abs_diff_mean"] == pytest.approx(np.mean(np.abs(d)))
        assert row["logprob_abs_diff_max"] == np.abs(d).max()


def test_weights_that_are_not_known_have_no_lag(tmp_path: Path) -> None:
    with compared(tmp_path, None) as session:
        rows = session.sql("SELECT lag, num_tokens, k3_kl_over_lag_0 FROM staleness_by_lag").rows()
    assert rows == [(None, 5, None)]
