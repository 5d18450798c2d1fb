"""Classes of tokens, and how many differ by how much."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from factories import make_request, make_trace
from tracekit import connect


def test_where_a_token_stands_and_how_sure_it_is(tmp_path: Path) -> None:
    logprob = np.log([0.95, 0.6, 0.2, 0.05, 0.001]).astype(np.float32)
    stopped = make_request(
        "stopped",
        token_ids=[5, 6, 7, 8, 2],
        logprob=logprob,
        tokens={"top1_margin": np.array([3.0, 0.0, 0.1, 0.5, np.nan], np.float32)},
        outcome={"finish_reason": "stop"},
        stop_token_ids=[[2, 9]],
    )
    running = make_request("running", token_ids=[2], logprob=math.nan, ended=False)
    columns = (
        "output_index, is_first, is_last, is_stop_token, ends_by_stop, is_confident, probability_class, margin_class"
    )
    with connect(make_trace(tmp_path / "a", requests=[stopped, running])) as session:
        found = session.sql(f"SELECT {columns} FROM token_classes WHERE request_id = 'stopped' ORDER BY 1").rows()
        open_ended = session.sql(f"SELECT {columns} FROM token_classes WHERE request_id = 'running'").rows()
    assert found == [
        (0, True, False, False, False, True, "p >= 0.9", "1 and more"),
        (1, False, False, False, False, True, "0.5 <= p < 0.9", "tie"),
        (2, False, False, False, False, False, "0.1 <= p < 0.5", "under 0.125"),
        (3, False, False, False, False, False, "0.01 <= p < 0.1", "0.125 to 1"),
        (4, False, True, True, True, False, "p < 0.01", None),
    ]
    assert open_ended[0][:5] == (0, True, None, None, None)
    assert open_ended[0][6] is None


def test_exceedances(tmp_path: Path) -> None:
    differences = np.array([0, 0.0005, -0.005, 0.05, -0.5, 1.5, -5, 50, -math.inf])
    logprob = -60 + np.zeros(9)
    a = make_trace(tmp_path / "a", requests=[make_request(token_ids=range(9), logprob=logprob)])
    b = make_trace(
        tmp_path / "b",
        requests=[make_request(token_ids=range(9), logprob=(logprob + differences).astype(np.float32))],
        role="replay",
        parent=a,
    )
    with connect(a, b) as session:
        found = session.sql("FROM exceedances").rows()
    d = np.abs((logprob + differences).astype(np.float32).astype(np.float64) - logprob)
    thresholds = [0, 0.001, 0.01, 0.1, 1, 2, 10]
    expected = [(t, 9, int((d > t).sum()), float((d > t).mean())) for t in thresholds]
    assert found == [*expected, (math.inf, 9, 1, 1 / 9)]
