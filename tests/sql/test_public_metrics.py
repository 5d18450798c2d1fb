"""Metrics against public implementations of them, on the same numbers.

SciPy runs here. The trainers' packages would replace the engine's torch and transformers: what their own code computed
stands in tests/public_metrics, written by tools/make_public_metrics.py.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats

from factories import make_request, make_trace
from logit_rows import logit_rows
from logit_traces import opened
from public_inputs import Case, cases
from tracekit import connect

FIXTURES = Path(__file__).parents[1] / "public_metrics"
PROJECTS = ("verl", "trl", "skyrl")
CASES = cases()


@cache
def figures(project: str) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Returns a hash of each case's numbers, and what the project's code made of them."""
    head, *found = map(json.loads, (FIXTURES / f"{project}.jsonl").read_text(encoding="utf-8").splitlines())
    return head["inputs"], found


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float | None]]:
    """Every metric of every case."""
    return {name: _metrics(tmp_path_factory.mktemp("case"), case) for name, case in CASES.items()}


def _metrics(folder: Path, case: Case) -> dict[str, float | None]:
    sides: dict[str, list[Any]] = {"a": [], "b": []}
    for index, (a, b, advantage) in enumerate(zip(case.a, case.b, case.advantages, strict=True)):
        shared = {"prompt": [index], "token_ids": range(len(a))}
        sides["a"].append(make_request(f"r{index:03}", logprob=a, **shared))
        columns = {"advantage": np.full(len(b), advantage)}
        sides["b"].append(make_request(f"r{index:03}", logprob=b, forced=True, tokens=columns, **shared))
    first = make_trace(folder / "a", requests=sides["a"], run_id="run a")
    second = make_trace(folder / "b", requests=sides["b"], run_id="run b", role="replay", parent=first)
    with connect(first, second) as session:
        rows = session.sql("SELECT name, value FROM metrics ORDER BY basis DESC").rows()
    # Both bases are of the same tokens and logprobs here.
    return dict(rows)


@pytest.mark.parametrize("project", PROJECTS)
@pytest.mark.parametrize("name", CASES)
def test_trainers_own_code(project: str, name: str, ours: dict[str, dict[str, float | None]]) -> None:
    inputs, found = figures(project)
    case = CASES[name]
    assert inputs[name] == case.digest(), "other numbers: run tools/make_public_metrics.py"
    compared = [figure for figure in found if figure["case"] == name and not is_clamped(figure, case)]
    for figure in compared:
        assert_same(ours[name][figure["metric"]], figure, case)
    assert len(compared) >= 3


def is_clamped(figure: dict[str, Any], case: Case) -> bool:
    d = [b.astype(np.float64) - a for a, b in zip(case.a, case.b, strict=True)]
    values = [row.sum() for row in d] if figure.get("sums") else np.concatenate(d)
    return "clamp" in figure and bool(np.abs(values).max() > figure["clamp"])


def assert_same(value: float | None, figure: dict[str, Any], case: Case) -> None:
    theirs = float(figure["value"])
    relative, absolute = figure.get("rtol", 1e-9), 1e-15
    if figure["metric"] in ("k3_kl", "chi2_token", "chi2_seq"):
        # They subtract 1 from numbers near 1, in float64.
        absolute = 4 * 2.0**-52
    if figure["metric"] == "probs_pearson_correlation":
        relative += correlation_error(*(np.exp(np.concatenate(side).astype(np.float64)) for side in (case.a, case.b)))
    if np.isnan(theirs) or relative > 1:
        assert value is None, figure
    else:
        assert value == pytest.approx(theirs, rel=relative, abs=absolute), figure


def correlation_error(x: np.ndarray, y: np.ndarray) -> float:
    """Returns what the metric's definition allows: 1e-14 over the smaller variance, for numbers up to 1."""
    spread = min(x.var(), y.var())
    return float(1e-14 * max(1, (x * x).max()) / spread) if spread > 0 else np.inf


def test_every_project_is_compared_where_it_can_be() -> None:
    """Each metric that one of them computes is compared on some case where it is neither 0 nor 1."""
    compared = {
        figure["metric"]
        for project in PROJECTS
        for figure in figures(project)[1]
        if float(figure["value"]) not in (0, 1) and not is_clamped(figure, CASES[figure["case"]])
    }
    assert compared == {
        "kl", "k2_kl", "k3_kl", "logprob_abs_diff_mean", "logprob_abs_diff_max", "probs_diff_mean", "probs_diff_max",
        "probs_diff_std", "probs_pearson_correlation", "ppl_ratio", "log_ppl_diff", "log_ppl_abs_diff", "chi2_token",
        "chi2_seq", "sampling_importance_ratio", "effective_sample_size", "effective_sample_size_truncated",
        "clip_fraction_ppo", "clip_fraction_dapo", "clip_fraction_gspo", "tis_mean", "tis_truncated_fraction",
        "tis_truncated_fraction_3", "mis_masked_fraction", "icepop_masked_fraction", "geometric_masked_fraction",
        "dppo_tv_masked_fraction", "veto_fraction",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["ordinary", "wide", "near a bound"])
def test_correlations_of_scipy(name: str, ours: dict[str, dict[str, float | None]]) -> None:
    a, b = (np.concatenate(side).astype(np.float64) for side in (CASES[name].a, CASES[name].b))
    for metric, x, y in (
        ("logprob_pearson_correlation", a, b),
        ("probs_pearson_correlation", np.exp(a), np.exp(b)),
    ):
        allowed = 1e-9 + correlation_error(x, y)
        assert ours[name][metric] == pytest.approx(scipy.stats.pearsonr(x, y).statistic, rel=allowed)


def test_kl_of_scipy(tmp_path: Path) -> None:
    a, b = logit_rows(np.random.default_rng(8), 500, 200)
    with opened(tmp_path, a, b) as session:
        found = np.array(session.sql("SELECT kl_ab, kl_ba FROM kld ORDER BY output_index").rows())
    p, q = (scipy.special.softmax(side.astype(np.float64), axis=1) for side in (a, b))
    # rel_entr subtracts what is nearly equal, in float64.
    np.testing.assert_allclose(found[:, 0], scipy.special.rel_entr(p, q).sum(axis=1), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found[:, 1], scipy.special.rel_entr(q, p).sum(axis=1), rtol=1e-9, atol=1e-14)
