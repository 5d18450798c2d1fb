"""Aligned positions and their differences."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from factories import MadeRequest, make_request, make_trace
from tracekit import Session, connect, schema


def compare(folder: Path, a: list[MadeRequest], b: list[MadeRequest]) -> Session:
    """A recording and a replay of it."""
    parent = make_trace(folder / "a", requests=a, run_id="run a")
    return connect(parent, make_trace(folder / "b", requests=b, role="replay", parent=parent, run_id="run b"))


def test_columns(tmp_path: Path) -> None:
    tokens = [column.name for column in schema.table("tokens").columns]
    with compare(tmp_path, [make_request()], [make_request()]) as session:
        columns = session.sql("FROM pairs").columns
    assert columns == [
        *("request_id", "output_index", "position", "token_id"),
        *(f"a_{name}" for name in tokens),
        *(f"b_{name}" for name in tokens),
        *("d", "d_processed", "argmax_equal"),
    ]


def test_difference_is_exact_in_double(tmp_path: Path) -> None:
    a_logprob, b_logprob = [-0.1, -16.3, -1e-7], [-0.1000001, -16.30001, -2e-7]
    a = make_request(logprob=a_logprob, tokens={"processed_logprob": [-1.0, -2.0, None]})
    b = make_request(logprob=b_logprob, tokens={"processed_logprob": [-1.5, -2.0, -3.0]}, forced=True)
    with compare(tmp_path, [a], [b]) as session:
        result = session.sql("SELECT d, d_processed FROM pairs ORDER BY output_index")
        assert [str(field.type) for field in result.schema] == ["double", "double"]
        rows = result.rows()
    a_stored, b_stored = (np.asarray(side, np.float32).astype(np.float64) for side in (a_logprob, b_logprob))
    assert [d for d, _ in rows] == list(b_stored - a_stored)
    assert [d for _, d in rows] == [-0.5, 0.0, None]


def test_pairs_end_with_the_first_differing_token(tmp_path: Path) -> None:
    a = [make_request("forks", token_ids=[1, 2, 3, 4]), make_request("equal", token_ids=[5, 6], temperature=0.0)]
    b = [make_request("forks", token_ids=[1, 9, 3, 4], logprob=-0.25), make_request("equal", token_ids=[5, 6])]
    with compare(tmp_path, a, b) as session:
        columns = "request_id, output_index, position, token_id, b_token_id, d, d_processed, argmax_equal"
        rows = session.sql(f"SELECT {columns} FROM pairs ORDER BY a_token_id").rows()
    assert rows == [
        ("forks", 0, 3, 1, 1, 0.25, 0.25, True),
        ("forks", 1, 4, 2, 9, None, None, False),
        ("equal", 0, 3, 5, 5, 0.0, 0.0, True),
        ("equal", 1, 4, 6, 6, 0.0, 0.0, True),
    ]


def test_pairs_hold_what_both_sides_delivered(tmp_path: Path) -> None:
    a = make_request(token_ids=[1, 2, 3, 4], outcome={"num_output_tokens": 3})
    b = make_request(token_ids=[1, 2, 3, 4], outcome={"num_output_tokens": 2})
    with compare(tmp_path, [a], [b]) as session:
        assert session.sql("SELECT token_id FROM pairs ORDER BY ALL").rows() == [(1,), (2,)]


def test_discarded_tokens_make_no_fork(tmp_path: Path) -> None:
    a = make_request(token_ids=[1, 2, 3], outcome={"num_output_tokens": 2})
    b = make_request(token_ids=[1, 2, 9], outcome={"num_output_tokens": 2})
    with compare(tmp_path, [a], [b]) as session:
        assert session.sql("SELECT count(*), count(d) FROM pairs").rows() == [(2, 2)]


def test_prompt_positions_are_not_paired(tmp_path: Path) -> None:
    prompt_rows = {"output_index": [None, 0], "position": [2, 3], "is_prompt": [True, False]}
    a, b = (make_request(token_ids=[7, 8], tokens=prompt_rows) for _ in range(2))
    with compare(tmp_path, [a], [b]) as session:
        assert session.sql("SELECT token_id FROM pairs").rows() == [(8,)]


def test_a_dropped_row_leaves_a_gap(tmp_path: Path) -> None:
    kept = {"output_index": [0, 2], "position": [3, 5]}
    a = make_request(token_ids=[1, 2, 3])
    b = make_request(token_ids=[1, 3], tokens=kept, outcome={"num_output_tokens": 3})
    with compare(tmp_path, [a], [b]) as session:
        assert session.sql("SELECT output_index, token_id FROM pairs ORDER BY ALL").rows() == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    ("a_logprob", "b_logprob", "expected"),
    [
        (-1.0, -math.inf, -math.inf),
        (-math.inf, -1.0, math.inf),
        (-math.inf, -math.inf, None),
        (math.nan, -1.0, math.nan),
        (None, -1.0, None),
    ],
)
def test_infinities_are_shown(
    tmp_path: Path, a_logprob: float | None, b_logprob: float, expected: float | None
) -> None:
    a, b = (make_request(token_ids=[1], logprob=[value]) for value in (a_logprob, b_logprob))  # type: ignore[list-item]
    with compare(tmp_path, [a], [b]) as session:
        (found,) = session.sql("SELECT d FROM pairs").rows()[0]
    assert found == expected or (math.isnan(found) and expected is not None and math.isnan(expected))
