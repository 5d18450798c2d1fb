"""Causes whose differences grow with something that was recorded: a position, a trainer's step."""

from __future__ import annotations

import numpy as np

from tracekit.analysis.explain.base import Cause, Claim, Question, Variant
from tracekit.analysis.explain.significance import Between, Within
from tracekit.analysis.explain.tokens import Floats

_FEWEST_WITHIN = 5
_NUM_LEVELS = 8


def by_trend(cause: Cause, question: Question, covariate: Floats, name: str, query: str) -> Claim:
    """Claims that differences grow with a covariate, float64 [N]; NaN for tokens that tell nothing."""
    tokens = question.tokens
    usable = tokens.finite & ~np.isnan(covariate)
    x = np.nan_to_num(covariate)
    centred = x - np.nan_to_num(tokens.means(x, usable))[tokens.request]
    spread = np.nan_to_num(tokens.means(np.square(centred), usable))
    varying = spread > 0
    if np.sum(varying & question.chosen) >= _FEWEST_WITHIN:
        gains = np.nan_to_num(tokens.means(centred * question.score, usable))
        gains = np.divide(gains, np.sqrt(spread), out=np.zeros_like(gains), where=varying)
        test: Within | Between = Within(np.where(question.chosen, gains, 0.0)[None, :])
    else:
        labels = np.where(question.chosen, tokens.means(x, usable), np.nan)[None, :]
        test = Between(labels, tokens.means(question.score, tokens.finite), np.zeros(tokens.num_requests, np.int64))
    excess = _excess(question, covariate, usable)
    growth = {"grows_with": name, "excess_at_end": float(np.max(excess, initial=0.0))}
    tested = usable & question.chosen[tokens.request]
    # Scores are logarithms: what grows in proportion follows the covariate's.
    lowest = float(np.min(x[tested], initial=np.inf)) if np.any(tested) else 0.0
    fit = max(_fit(question, x, tested), _fit(question, np.log1p(np.maximum(x - lowest, 0)), tested))
    return Claim(cause, test, lambda _: Variant.of_excess(growth, query, excess), fit=fit)


def _fit(question: Question, x: Floats, tested: np.ndarray) -> float:
    """Returns the sum of squares that a straight line explains; 0 for one that falls."""
    if not np.any(tested):
        return 0.0
    x, score = x[tested] - np.mean(x[tested]), question.score[tested]
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
