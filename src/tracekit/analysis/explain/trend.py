"""Causes whose differences grow with something that was recorded: a position, a trainer's step."""

from __future__ import annotations

import numpy as np

from tracekit.analysis.explain.base import Cause, Claim, Question, Variant
from tracekit.analysis.explain.significance import Within
from tracekit.analysis.explain.tokens import Floats

_NUM_LEVELS = 8
# A line through a step explains most of it; a step through a line less, though its edge may lie anywhere.
_OF_LINE = 0.93


def by_trend(cause: Cause, question: Question, covariate: Floats, name: str, query: str) -> Claim:
    """Claims that differences grow with a covariate, float64 [N]; NaN for tokens that tell nothing."""
    tokens = question.tokens
    usable = tokens.finite & ~np.isnan(covariate)
    tested, chosen = (usable & of[tokens.request] for of in (question.tested, question.chosen))
    x = np.where(usable, covariate, 0.0)
    lowest = float(np.min(x[tested], initial=np.inf)) if np.any(tested) else 0.0
    # Scores are logarithms: what grows in proportion follows the covariate's.
    curves = (x, np.log1p(np.maximum(x - lowest, 0)))
    test = Within(np.array([_scores(question, curve, tested) for curve in curves]))
    excess = _excess(question, covariate, usable)
    growth = {"grows_with": name, "excess_at_end": float(np.max(excess, initial=0.0))}
    fit = _OF_LINE * max(_fit(question, curve, chosen) for curve in curves)
    return Claim(cause, test, lambda _: Variant.of_excess(growth, query, excess), fit=fit)


def _scores(question: Question, x: Floats, tested: np.ndarray) -> Floats:
    """Returns what each request adds to the covariance of scores and of a curve, float64 [R]."""
    if not np.any(tested):
        return np.zeros(question.tokens.num_requests)
    products = (x - np.mean(x[tested])) * (question.score - np.mean(question.score[tested]))
    return question.tokens.per_request(products, tested)[0]


def _fit(question: Question, x: Floats, chosen: np.ndarray) -> float:
    """Returns the sum of squares that a straight line explains; 0 for one that falls."""
    if not np.any(chosen):
        return 0.0
    x, score = x[chosen] - np.mean(x[chosen]), question.score[chosen]
    spread, covariance = float(np.sum(x * x)), float(np.sum(x * (score - np.mean(score))))
    return covariance * covariance / spread if covariance > 0 and spread > 0 else 0.0


def _excess(question: Question, covariate: Floats, usable: np.ndarray) -> Floats:
    """Returns which share of a token's square goes beyond that at the covariate's lowest level, float64 [N]."""
    values = np.where(usable, covariate, np.nan)
    edges = np.unique(np.nanquantile(values, np.linspace(0, 1, _NUM_LEVELS + 1)[1:-1]))
    level = np.searchsorted(edges, np.nan_to_num(values), side="right")
    squares = np.square(question.residual)
    counts = np.bincount(level[usable], minlength=len(edges) + 1)
    means = np.bincount(level[usable], squares[usable], len(edges) + 1) / np.maximum(counts, 1)
    lowest = means[np.flatnonzero(counts)[0]] if np.any(counts) else 0.0
    rising = np.maximum.accumulate(means)
    share = np.divide(rising - lowest, rising, out=np.zeros_like(rising), where=rising > 0)
    return np.where(usable, np.clip(share, 0, 1)[level], 0.0)
