"""The view `metrics` against the same figures from NumPy in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from factories import MadeRequest, make_request, make_trace
from tracekit import connect

NAMES = [
    "kl",
    "k3_kl",
    "logprob_abs_diff_mean",
    "logprob_abs_diff_max",
    "ppl_ratio",
    "same_top_p",
    "effective_sample_size",
    "ratio_oob_fraction",
]
Metrics = dict[str, dict[str, tuple[float | None, int, bool]]]


def metrics_of(folder: Path, a: list[MadeRequest], b: list[MadeRequest], *, a_parent: Path | None = None) -> Metrics:
    role = "replay" if a_parent else "record"
    first = make_trace(folder / "a", requests=a, run_id="run a", role=role, parent=a_parent)
    second = make_trace(folder / "b", requests=b, run_id="run b", role="replay", parent=a_parent or first)
    found: Metrics = {"raw": {}, "processed": {}}
    with connect(first, second) as session:
        rows = session.sql("SELECT basis, name, value, num_tokens, descriptive FROM metrics").rows()
    assert [row[:2] for row in rows] == [(basis, name) for basis in ("raw", "processed") for name in NAMES]
    for basis, name, value, num_tokens, descriptive in rows:
        found[basis][name] = (value, num_tokens, descriptive)
    return found


def expected(sequences: Sequence[np.ndarray], argmax_equal: np.ndarray) -> dict[str, float]:
    """The definitions, over arrays of float64 log ratios, one a sequence."""
    d = np.concatenate(sequences)
    weights = np.exp(d)
    return {
        "kl": float(np.mean(-d)),
        "k3_kl": float(np.mean(np.expm1(d) - d)),
        "logprob_abs_diff_mean": float(np.mean(np.abs(d))),
        "logprob_abs_diff_max": float(np.max(np.abs(d))),
        "ppl_ratio": float(np.mean([np.exp(np.mean(-sequence)) for sequence in sequences])),
        "same_top_p": float(np.mean(argmax_equal)),
        "effective_sample_size": float(weights.sum() ** 2 / (d.size * (weights**2).sum())),
        "ratio_oob_fraction": float(np.mean((weights < 0.8) | (weights > 1.2))),
    }


def values(metrics: dict[str, tuple[float | None, int, bool]]) -> dict[str, float | None]:
    return {name: value for name, (value, _, _) in metrics.items()}


def test_values_equal_numpy_on_both_bases(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b, raw, processed, flips, sampled_flips = [], [], [], [], [], []
    for index, (num, temperature) in enumerate([(5, 0.8), (60, 0.0), (1, 1.0), (200, 0.7)]):
        ids = rng.integers(0, 100, num)
        sides = -rng.exponential(1.0, (4, num)).astype(np.float32)
        sides[1] = sides[0] + rng.normal(0, 0.1, num).astype(np.float32)
        sides[3] = sides[2] + rng.normal(0, 0.1, num).astype(np.float32)
        flip = rng.random(num) < 0.1
        options = {"token_ids": ids.tolist(), "temperature": temperature, "prompt": [index]}
        b_columns = {"processed_logprob": sides[3], "argmax_token_id": np.where(flip, 777, ids)}
        a.append(make_request(f"r{index}", logprob=sides[0], tokens={"processed_logprob": sides[2]}, **options))
        b.append(make_request(f"r{index}", logprob=sides[1], tokens=b_columns, forced=True, **options))
        wide = sides.astype(np.float64)
        raw.append(wide[1] - wide[0])
        flips.append(~flip)
        if temperature > 0:
            processed.append(wide[3] - wide[2])
            sampled_flips.append(~flip)
    found = metrics_of(tmp_path, a, b)
    assert values(found["raw"]) == pytest.approx(expected(raw, np.concatenate(flips)), rel=1e-12)
    assert values(found["processed"]) == pytest.approx(expected(processed, np.concatenate(sampled_flips)), rel=1e-12)
    assert {(num, descriptive) for _, num, descriptive in found["raw"].values()} == {(266, True)}
    assert {(num, descriptive) for _, num, descriptive in found["processed"].values()} == {(206, False)}


def test_tiny_differences_keep_their_k3(tmp_path: Path) -> None:
    step = float(np.spacing(np.float32(2.0)))
    a = make_request(token_ids=[1, 2], logprob=-2.0)
    b = make_request(token_ids=[1, 2], logprob=[-2.0 + step, -2.0])
    found = metrics_of(tmp_path, [a], [b])
    assert found["raw"]["k3_kl"][0] == pytest.approx((step**2 / 2 + step**3 / 6) / 2, rel=1e-12)


def test_greedy_tokens_and_forks_stay_out_of_the_processed_basis(tmp_path: Path) -> None:
    a = [make_request("greedy", temperature=0.0), make_request("forks", token_ids=[1, 2, 3])]
    b = [make_request("greedy", temperature=0.0), make_request("forks", token_ids=[1, 9, 3], logprob=-0.25)]
    found = metrics_of(tmp_path, a, b)
    assert (found["raw"]["kl"], found["raw"]["same_top_p"]) == ((-0.0625, 4, True), (0.8, 5, True))
    assert (found["processed"]["kl"], found["processed"]["same_top_p"]) == ((-0.25, 1, False), (0.5, 2, False))


def test_tokens_given_to_a_are_descriptive(tmp_path: Path) -> None:
    recording = make_trace(tmp_path / "recording")
    a, b = (make_request(logprob=logprob, forced=True) for logprob in (-0.5, -0.75))
    assert metrics_of(tmp_path, [a], [b], a_parent=recording)["processed"]["kl"] == (0.25, 3, True)


def test_tokens_given_to_a_stay_out_where_it_sampled_others(tmp_path: Path) -> None:
    forced = [True, False, False]
    a, b = make_request(forced=forced), make_request(logprob=[-1.5, -0.5, -1.0])
    assert metrics_of(tmp_path, [a], [b])["processed"]["kl"] == (0.25, 2, False)


def test_no_token_no_figure(tmp_path: Path) -> None:
    a, b = (make_request(temperature=0.0, tokens={"argmax_token_id": None}) for _ in range(2))
    found = metrics_of(tmp_path, [a], [b])
    assert set(found["processed"].values()) == {(None, 0, False)}
    assert (found["raw"]["same_top_p"], found["raw"]["kl"]) == ((None, 0, True), (0.0, 3, True))
    assert math.copysign(1, found["raw"]["kl"][0] or 0.0) == 1


def test_excluded_tokens_are_counted_and_shown(tmp_path: Path) -> None:
    a, b = make_request(logprob=-1.0), make_request(logprob=[-math.inf, -1.0, -1.0])
    found = metrics_of(tmp_path, [a], [b])["processed"]
    infinite = {"kl", "k3_kl", "logprob_abs_diff_mean", "logprob_abs_diff_max", "ppl_ratio"}
    assert {name for name, (value, _, _) in found.items() if value == math.inf} == infinite
    assert found["effective_sample_size"][0] == pytest.approx(2 / 3)
    assert found["ratio_oob_fraction"][0] == pytest.approx(1 / 3)
    assert {num for _, num, _ in found.values()} == {3}


def test_excluded_on_both_sides_is_no_difference(tmp_path: Path) -> None:
    a, b = (make_request(logprob=[-math.inf, -1.0, -1.0]) for _ in range(2))
    assert metrics_of(tmp_path, [a], [b])["processed"]["kl"] == (0.0, 2, False)


@pytest.mark.parametrize(
    "d",
    [
        [1000.0, 1000.0, 998.0],
        [-1000.0, -1000.0, -1001.0],
        [-1000.0, 0.0, 1.0],
        [400.0, -400.0, 399.0],
        [128.1, 127.9, 0.0],
    ],
)
def test_effective_sample_size_of_extreme_ratios(tmp_path: Path, d: list[float]) -> None:
    a, b = make_request(logprob=0.0), make_request(logprob=d)
    log_ratios = np.asarray(d, np.float32).astype(np.float64)
    weights = np.exp(log_ratios - log_ratios.max())
    size = weights.sum() ** 2 / (3 * (weights**2).sum())
    assert metrics_of(tmp_path, [a], [b])["raw"]["effective_sample_size"][0] == pytest.approx(size, rel=1e-12)


def test_bounds_of_the_ratio(tmp_path: Path) -> None:
    ratios = [0.79, 0.81, 1.19, 1.21, 1.0]
    a = make_request(token_ids=range(5), logprob=-1.0)
    b = make_request(token_ids=range(5), logprob=(np.log(ratios) - 1).tolist())
    assert metrics_of(tmp_path, [a], [b])["raw"]["ratio_oob_fraction"][:2] == (0.4, 5)


def test_metrics_read_no_list_column(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "a")
    with connect(path, path) as session:
        plan = session.sql("EXPLAIN FROM metrics").rows()[0][1]
        lists = session.sql("EXPLAIN SELECT a_top_logits FROM pairs").rows()[0][1]
    assert "top_logits" in lists
    assert "logprob" in plan
    assert not any(name in plan for name in ("top_logits", "top_token_ids", "prompt_token_ids"))
