"""The view `metrics` against the same figures from NumPy in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from factories import MadeRequest, make_request, make_trace
from metric_definitions import Pairs, figures, sequence
from tracekit import connect

Metrics = dict[str, dict[str, tuple[float | None, int, bool]]]


def metrics_of(folder: Path, a: list[MadeRequest], b: list[MadeRequest], *, a_parent: Path | None = None) -> Metrics:
    role = "replay" if a_parent else "record"
    first = make_trace(folder / "a", requests=a, run_id="run a", role=role, parent=a_parent)
    second = make_trace(folder / "b", requests=b, run_id="run b", role="replay", parent=a_parent or first)
    found: Metrics = {"raw": {}, "processed": {}}
    with connect(first, second) as session:
        for basis, name, value, num_tokens, descriptive in session.sql(
            "SELECT basis, name, value, num_tokens, descriptive FROM metrics"
        ).rows():
            found[basis][name] = (value, num_tokens, descriptive)
    return found


# Logprobs of A and log ratios: ordinary ones, and those in which careless arithmetic shows.
INPUTS = {
    "ordinary": lambda rng, n: (-rng.exponential(1.0, n), rng.normal(0, 0.05, n)),
    "wide": lambda rng, n: (-rng.exponential(5.0, n), rng.normal(0, 4, n)),
    "tiny": lambda rng, n: (np.full(n, -1.5), np.spacing(np.float32(1.0)) * rng.integers(-3, 4, n)),
    "equal": lambda rng, n: (-rng.exponential(1.0, n), np.zeros(n)),
    "fifty": lambda rng, n: (-rng.uniform(50, 60, n), rng.choice([-50.0, 50.0], n)),
    "confident": lambda rng, n: (-rng.exponential(1e-3, n), -rng.exponential(1e-3, n)),
    "far below": lambda rng, n: (-rng.exponential(1.0, n), np.full(n, -50.0)),
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("lengths", [(1,), (1, 1, 2), (5, 60, 1, 200)], ids=str)
def test_every_metric_equals_its_definition(tmp_path: Path, kind: str, lengths: Sequence[int]) -> None:
    rng = np.random.default_rng([len(kind), *lengths])
    a, b, sequences = [], [], []
    for index, num in enumerate(lengths):
        ids = rng.integers(0, 100, num)
        logprob, d = INPUTS[kind](rng, num)
        other = logprob + d
        same = rng.random(num) < 0.9
        advantage = rng.normal(0, 1, num) if index != 1 else np.full(num, np.nan)
        shared = {"token_ids": ids.tolist(), "prompt": [index]}
        a.append(make_request(f"r{index}", logprob=logprob.astype(np.float32), **shared))
        columns = {
            "argmax_token_id": np.where(same, ids, 777),
            "advantage": [None if np.isnan(value) else float(value) for value in advantage],
        }
        b.append(make_request(f"r{index}", logprob=other.astype(np.float32), forced=True, tokens=columns, **shared))
        sequences.append(sequence(logprob, other, same, advantage))
    found, expected = metrics_of(tmp_path, a, b), figures(sequences)
    assert set(found["raw"]) | set(found["processed"]) == set(expected)
    for basis, metrics in found.items():
        for name, (value, _, _) in metrics.items():
            if bound(name, expected[name], sequences) > 1 and name.endswith("correlation"):
                continue  # by its definition's bound, doubles cannot tell
            assert (value is None) == (expected[name] is None), (basis, name, value, expected[name])
            if value is not None and expected[name] < np.finfo(np.float64).max:
                assert abs(value - expected[name]) <= bound(name, expected[name], sequences), (basis, name)


def bound(name: str, value: np.longdouble | None, sequences: Sequence[Pairs]) -> np.longdouble:
    """1e-9 of the value, or 1e-15; of correlations, what their definition states."""
    if name.endswith("pearson_correlation"):
        sides = [np.concatenate([getattr(s, side) for s in sequences]) for side in "ab"]
        spread = min(side.var() for side in (sides if name.startswith("logprob") else map(np.exp, sides)))
        scale = max(1, np.abs(sides[0]).max() ** 2)
        return np.longdouble(1e-9) + (1e-14 * scale / spread if spread > 0 else np.longdouble(np.inf))
    return max(abs(value or np.longdouble(0)) * np.longdouble(1e-9), np.longdouble(1e-15))


def test_bases_differ_in_tokens_and_in_logprobs(tmp_path: Path) -> None:
    """Greedy requests count on the raw basis only, and the processed basis has the processed logprobs."""
    rng = np.random.default_rng(0)
    a, b, raw, processed = [], [], [], []
    for index, (num, temperature) in enumerate([(5, 0.8), (60, 0.0), (1, 1.0), (200, 0.7)]):
        ids = rng.integers(0, 100, num)
        sides = -rng.exponential(1.0, (4, num)).astype(np.float32)
        sides[1] = sides[0] + rng.normal(0, 0.1, num).astype(np.float32)
        sides[3] = sides[2] + rng.normal(0, 0.1, num).astype(np.float32)
        options = {"token_ids": ids.tolist(), "temperature": temperature, "prompt": [index]}
        a.append(make_request(f"r{index}", logprob=sides[0], tokens={"processed_logprob": sides[2]}, **options))
        b.append(
            make_request(f"r{index}", logprob=sides[1], tokens={"processed_logprob": sides[3]}, forced=True, **options)
        )
        nothing = np.full(num, np.nan)
        raw.append(sequence(sides[0], sides[1], np.full(num, True), nothing))
        if temperature > 0:
            processed.append(sequence(sides[2], sides[3], np.full(num, True), nothing))
    found = metrics_of(tmp_path, a, b)
    for basis, sequences, num_tokens, descriptive in (("raw", raw, 266, True), ("processed", processed, 206, False)):
        expected = figures(sequences)
        for name, (value, num, marked) in found[basis].items():
            if expected[name] is None:
                assert (value, num) == (None, 0)
            else:
                assert value == pytest.approx(float(expected[name]), rel=1e-9)
                assert (num, marked) == (num_tokens, descriptive)


def test_tokens_that_the_loss_mask_leaves_out(tmp_path: Path) -> None:
    a = make_request(logprob=[-1.0, -1.0, -1.0])
    b = make_request(logprob=[-1.5, -3.0, -1.0], tokens={"loss_mask": [True, False, True]})
    found = metrics_of(tmp_path, [a], [b])
    assert found["processed"]["kl"][:2] == (0.25, 2)
    assert found["raw"]["kl"][:2] == (pytest.approx(2.5 / 3), 3)


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
    assert {(value, num) for value, num, _ in found["processed"].values()} == {(None, 0)}
    assert (found["raw"]["same_top_p"], found["raw"]["kl"]) == ((None, 0, True), (0.0, 3, True))
    assert math.copysign(1, found["raw"]["kl"][0] or 0.0) == 1


def test_excluded_tokens_are_counted_and_shown(tmp_path: Path) -> None:
    a, b = make_request(logprob=-1.0), make_request(logprob=[-math.inf, -1.0, -1.0])
    found = metrics_of(tmp_path, [a], [b])["processed"]
    infinite = {
        "kl", "k2_kl", "k3_kl", "k3_kl_seq", "policy_kl_error", "js_divergence_error", "token_mult_prob_error",
        "logprob_abs_diff_mean", "logprob_abs_diff_max", "logprob_abs_diff_seq_mean", "ppl_ratio", "log_ppl_diff",
        "log_ppl_abs_diff",
    }  # fmt: skip
    assert {name for name, (value, _, _) in found.items() if value == math.inf} == infinite
    finite = {
        "effective_sample_size": 2 / 3, "ratio_oob_fraction": 1 / 3, "excluded_fraction": 1 / 3, "veto_fraction": 1,
        "kl_reversed": 1 / 3, "chi2_token": -1 / 3, "chi2_seq": -1, "sampling_importance_ratio": 2 / 3,
        "probs_diff_max": math.exp(-1), "probs_diff_mean": math.exp(-1) / 3,
    }  # fmt: skip
    assert {name: found[name][0] for name in finite} == pytest.approx(finite)
    assert not any(value is not None and math.isnan(value) for value, _, _ in found.values())


def test_excluded_on_both_sides_is_no_difference(tmp_path: Path) -> None:
    a, b = (make_request(logprob=[-math.inf, -1.0, -1.0]) for _ in range(2))
    assert metrics_of(tmp_path, [a], [b])["processed"]["kl"] == (0.0, 2, False)


@pytest.mark.parametrize("d", [[-300.0, -300.0, -301.0], [300.0, -400.0, 299.0], [128.1, 127.9, 0.0]])
def test_effective_sample_size_of_extreme_ratios(tmp_path: Path, d: list[float]) -> None:
    a, b = make_request(logprob=0.0), make_request(logprob=d)
    log_ratios = np.asarray(d, np.float32).astype(np.float64)
    weights = np.exp(log_ratios - log_ratios.max())
    size = weights.sum() ** 2 / (3 * (weights**2).sum())
    assert metrics_of(tmp_path, [a], [b])["raw"]["effective_sample_size"][0] == pytest.approx(size, rel=1e-9)


def test_effective_sample_size_beyond_doubles_is_unknown(tmp_path: Path) -> None:
    found = metrics_of(tmp_path, [make_request(logprob=0.0)], [make_request(logprob=[400.0, 0.0, 0.0])])
    assert found["raw"]["effective_sample_size"] == (None, 3, True)


def test_bounds_of_the_ratio(tmp_path: Path) -> None:
    ratios = [0.79, 0.81, 1.19, 1.21, 1.0]
    a = make_request(token_ids=range(5), logprob=-1.0)
    b = make_request(token_ids=range(5), logprob=(np.log(ratios) - 1).tolist())
    assert metrics_of(tmp_path, [a], [b])["raw"]["ratio_oob_fraction"][:2] == (0.4, 5)


def test_metrics_read_no_list_column(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "a")
    with connect(path, path) as session:
        plan = session.sql("EXPLAIN FROM metric_intervals_by(a_step_id)").rows()[0][1]
        lists = session.sql("EXPLAIN SELECT a_top_logits FROM pairs").rows()[0][1]
    assert "top_logits" in lists
    assert "logprob" in plan
    assert not any(name in plan for name in ("top_logits", "top_token_ids", "prompt_token_ids"))
