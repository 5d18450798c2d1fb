"""Bounds of KL from candidates hold the true KL, whatever the rows, and tighten as candidates are added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factories import make_request, make_trace
from logit_rows import KINDS, Floats, Wide, candidates, kls, logit_rows, logsumexps, serial_logsumexps, token_columns
from tracekit import connect

V = 48
KS = (1, 2, 3, 5, 8, 13, 21, 34, 47, 48)
COLUMNS = ("kl_ab_lower", "kl_ab_upper", "kl_ba_lower", "kl_ba_upper")


def bounds(
    folder: Path, a: Floats, b: Floats, *, is_replay: bool, error: int = 0, ks: tuple[int, ...] = KS
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the four bounds for each number of candidates and row, [K, rows, 4], and the number of known tokens.

    Args:
        a, b: the rows, [rows, V].
        is_replay: whether B replays A, and keeps its logits at the candidates of A.
        error: moves each logsumexp that far, in float32 steps.
        ks: numbers of candidates; each makes one request.
    """
    tokens = np.random.default_rng(5).integers(0, a.shape[1], len(a))
    a_sum = serial_logsumexps(a)
    b_sum = (logsumexps(b).astype(np.float32) if is_replay else serial_logsumexps(b)).astype(np.float32)
    a_sum, b_sum = (x + error * np.spacing(np.abs(x)) for x in (a_sum, -b_sum))
    b_sum = -b_sum
    a_requests, b_requests = [], []
    for k in ks:
        of_b: dict[str, Any] = token_columns(b, tokens, k, b_sum.astype(np.float32))
        if is_replay:
            of_b["parent_top_logits"] = list(np.take_along_axis(b, candidates(a, k)[0], axis=1))
        of_a = token_columns(a, tokens, k, a_sum.astype(np.float32))
        a_requests.append(make_request(f"k{k:05d}", prompt=[k], token_ids=tokens, tokens=of_a))
        b_requests.append(make_request(f"k{k:05d}", prompt=[k], token_ids=tokens, tokens=of_b))
    first = make_trace(folder / "a", requests=a_requests, run_id="run a", run={"vocab_size": a.shape[1]})
    b_run = {"vocab_size": a.shape[1], "backend": "hf" if is_replay else None}
    role = "replay" if is_replay else "record"
    parent = first if is_replay else None
    second = make_trace(folder / "b", requests=b_requests, run_id="run b", run=b_run, role=role, parent=parent)
    with connect(first, second, align="request_id") as session:
        query = f"SELECT {', '.join(COLUMNS)}, num_known FROM kld_bounds ORDER BY request_id, output_index"
        table = session.sql(query).rows()
    assert len(table) == len(ks) * len(a)
    assert not any(value is None for row in table for value in row)
    found = np.array(table, dtype=np.float64).reshape(len(ks), len(a), 5)
    return found[:, :, :4], found[:, :, 4]


def assert_held(found: np.ndarray, a: Floats, b: Floats) -> None:
    truth: list[Wide] = [kls(a, b), kls(b, a)]
    for direction, true in enumerate(truth):
        lower, upper = found[:, :, 2 * direction], found[:, :, 2 * direction + 1]
        assert (lower <= true).all(), [(KINDS[i % len(KINDS)], i) for i in np.unique(np.nonzero(lower > true)[1])][:10]
        assert (upper >= true).all(), [(KINDS[i % len(KINDS)], i) for i in np.unique(np.nonzero(upper < true)[1])][:10]
        assert (lower >= 0).all()


@pytest.mark.parametrize("is_replay", [False, True])
def test_random_rows_lie_between_and_bounds_tighten(tmp_path: Path, is_replay: bool) -> None:
    a, b = logit_rows(np.random.default_rng(11 + is_replay), 5000, V)
    found, num_known = bounds(tmp_path, a, b, is_replay=is_replay, ks=(1, 2, 4, 12, 30, V))
    assert_held(found, a, b)
    # Each step of the sums is right to float64; the bounds themselves are monotone.
    room = 1e-10 * (1 + np.abs(np.where(np.isfinite(found), found, 0)[:-1]))
    with np.errstate(invalid="ignore"):
        for lower, upper in ((0, 1), (2, 3)):
            assert (
                (found[1:, :, lower] >= found[:-1, :, lower] - room[:, :, lower]) | np.isinf(found[1:, :, lower])
            ).all()
            assert (
                (found[1:, :, upper] <= found[:-1, :, upper] + room[:, :, upper]) | np.isinf(found[:-1, :, upper])
            ).all()
    assert (num_known[-1] == V).all()


def test_the_whole_vocabulary_leaves_no_gap(tmp_path: Path) -> None:
    a, b = logit_rows(np.random.default_rng(12), 200, V)
    found, _ = bounds(tmp_path, a, b, is_replay=False, ks=(V,))
    for direction, true in enumerate((kls(a, b), kls(b, a))):
        for side in (0, 1):
            value = found[0, :, 2 * direction + side]
            np.testing.assert_allclose(value, np.asarray(true, np.float64), rtol=1e-9, atol=2e-10)


@pytest.mark.parametrize("error", [-2, 2])
def test_a_logsumexp_may_be_off_by_its_rounding(tmp_path: Path, error: int) -> None:
    a, b = logit_rows(np.random.default_rng(13), 500, V)
    found, _ = bounds(tmp_path, a, b, is_replay=True, error=error // 2)
    assert_held(found, a, b)


def test_bounds_say_something(tmp_path: Path) -> None:
    rng = np.random.default_rng(14)
    a = (rng.normal(0, 1, (50, V)) - 0.5 * np.arange(V)).astype(np.float32)
    b = (a + rng.normal(0, 0.3, a.shape)).astype(np.float32)
    found, _ = bounds(tmp_path, a, b, is_replay=True, ks=(20,))
    true = kls(a, b).astype(np.float64)
    assert (found[0, :, 0] > 0.8 * true).all()
    assert (found[0, :, 1] < true + 0.05).all()


def test_what_bounds_nothing_is_infinite_and_what_is_unknown_left_out(tmp_path: Path) -> None:
    unbounded = {"logit_min": [None, -np.inf, -4.0], "top_logits": [[2.0, 1.0]] * 3}
    a = make_trace(tmp_path / "a", requests=[make_request()], run={"vocab_size": 1000})
    b = make_trace(tmp_path / "b", requests=[make_request(tokens=unbounded)], run={"vocab_size": 1000})
    c_columns = {"logsumexp": [None, 2.5, np.nan], "top_logits": [[2.0, 1.0], [20.0, 1.0], [2.0, 1.0]]}
    c = make_trace(tmp_path / "c", requests=[make_request(tokens=c_columns)], run={"vocab_size": 1000})
    with connect(a, b, align="request_id") as session:
        upper = session.sql("SELECT kl_ab_upper FROM kld_bounds ORDER BY output_index").rows()
    with connect(a, c, align="request_id") as session:
        assert session.sql("FROM kld_bounds").rows() == []
    assert upper[:2] == [(np.inf,), (np.inf,)]
    assert np.isfinite(upper[2][0])


def test_either_side_may_be_the_replay(tmp_path: Path) -> None:
    a, b = logit_rows(np.random.default_rng(15), 500, V)
    found, num_known = bounds(tmp_path, a, b, is_replay=True, ks=(4, 12))
    query = f"SELECT {', '.join(COLUMNS)}, num_known FROM kld_bounds ORDER BY request_id, output_index"
    with connect(tmp_path / "b", tmp_path / "a", align="request_id") as session:
        swapped = np.array(session.sql(query).rows()).reshape(2, 500, 5)
    np.testing.assert_array_equal(swapped[:, :, 4], num_known)
    assert_held(swapped[:, :, :4], b, a)
    np.testing.assert_allclose(swapped[:, :, [2, 3, 0, 1]], found, rtol=1e-9, atol=1e-9)


def test_a_logsumexp_of_unknown_rounding_bounds_nothing(tmp_path: Path) -> None:
    a = make_trace(tmp_path / "a", requests=[make_request()], run={"vocab_size": 1000})
    narrow = {"vocab_size": 1000, "backend": "hf", "options": '{"log_softmax_dtype": "bfloat16"}'}
    wide = {**narrow, "options": '{"log_softmax_dtype": null}'}
    found = {}
    for name, role, run in (
        ("narrow", "replay", narrow),
        ("wide", "replay", wide),
        ("trainer", "trainer", {"vocab_size": 1000}),
    ):
        b = make_trace(tmp_path / name, requests=[make_request()], role=role, parent=a, run=run, run_id=name)
        with connect(a, b) as session:
            found[name] = session.sql("SELECT count(*) FROM kld_bounds").rows()[0][0]
    assert found == {"narrow": 0, "wide": 3, "trainer": 0}
