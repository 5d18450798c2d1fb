"""What causes that are known by sizes make of each token's square, where several are at work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tracekit.analysis.explain.base import Question
from tracekit.analysis.explain.tokens import Bins, Floats, rows_to_fit

_NUM_ROUNDS = 100
# A token that is all a cause's has odds without bound.
_LARGEST_EXCESS = 1 - 1e-9


def parts_of(question: Question, excesses: Sequence[Floats]) -> list[Floats]:
    """Returns which part of each token's square is each cause's, float64 [N] each.

    Each cause alone says what goes beyond the tokens that it does not touch, among which are those that others touch.
    So they are fitted together: a token of probability bin b has the mean square m_b (1 + sum_c r_c x_c), x_c the odds
    that the cause gave by itself, with m and r >= 0 such that the sums of squares come out right over each bin and over
    what each cause touches (multiplicative updates for the generalised Kullback-Leibler divergence: Lee and Seung,
    2001).

    Args:
        question: its residual is what these causes share out.
        excesses: of each cause by itself, float64 [N], 0 to 1.
    """
    if len(excesses) < 2:
        return list(excesses)
    tokens = question.tokens
    free = np.ones(tokens.num, bool) if np.all(question.chosen) else ~question.chosen[tokens.request]
    chosen = rows_to_fit(free & tokens.finite)
    squares, bins = np.square(question.residual[chosen]), tokens.probability_bins[chosen]
    odds = np.array([_odds(excess[chosen]) for excess in excesses])
    factors = _fit(squares, bins, odds)
    total = 1 + sum(factor * _odds(excess) for factor, excess in zip(factors, excesses, strict=True))
    return [factor * _odds(excess) / total for factor, excess in zip(factors, excesses, strict=True)]


def _odds(excess: Floats) -> Floats:
    known = np.minimum(excess, _LARGEST_EXCESS)
    return np.asarray(known / (1 - known))


def _fit(squares: Floats, bins: Bins, odds: Floats) -> Floats:
    """Returns how much of its odds each cause has, float64 [C].

    Args:
        squares: float64 [M].
        bins: uint8 [M].
        odds: float64 [C, M].
    """
    factors = np.ones(len(odds))
    of_bins = np.bincount(bins, squares)
    for _ in range(_NUM_ROUNDS):
        shape = 1 + factors @ odds
        weights = np.bincount(bins, shape)
        means = np.divide(of_bins, weights, out=np.zeros_like(weights), where=weights > 0)[bins]
        expected = means @ odds.T
        told = np.divide(squares, shape, out=np.zeros_like(squares), where=shape > 0) @ odds.T
        factors *= np.divide(told, expected, out=np.zeros_like(expected), where=expected > 0)
    return factors
