"""Causes that a recorded fact tells: tokens of which it is true differ more than others of like probability."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.analysis.explain.base import FACT, Cause, Claim, Question, Undecided, Variant
from tracekit.analysis.explain.significance import Between, Joint, Test, Within
from tracekit.analysis.explain.tokens import Bools, Floats, Integers

# With fewer requests that have tokens of both kinds, whole requests are compared with each other.
FEWEST_WITHIN = 5
_NUM_STRATA = 4
_MOST_PARTS = 4
_FEWEST_IN_PART = 200


@dataclass(frozen=True)
class Contrast(Cause):
    """Base of causes whose query names the tokens that they would touch."""

    tier: int = FACT

    def claim(self, question: Question) -> Claim | Undecided | None:
        return by_contrast(self, question, self.query(), {})


def by_contrast(
    cause: Cause,
    question: Question,
    query: str,
    parameters: dict[str, object],
    others: Bools | None = None,
    normal: Bools | None = None,
    degree: NDArray[np.floating] | None = None,
) -> Claim | Undecided | None:
    """Claims that the tokens of a query differ more than others.

    Args:
        cause: whose claim it is.
        question: what it is asked.
        query: names the tokens.
        parameters: what it says.
        others: bool [N], what they are tested against; by default all that the query does not name.
        normal: bool [N], those of the others whose size the touched would have; by default all.
        degree: [N], how much a token is touched, if that tells: the more, the larger it is taken to be.
    """
    mask = question.tokens.mask(query)
    others = ~mask if others is None else others & ~mask
    if not np.any(mask):
        return None
    if not np.any(others):
        return Undecided(cause, "it would touch every compared token: there are no others to hold them against")

    def variant(_: int) -> Variant:
        of = others if normal is None else others & normal
        excess = np.zeros(question.tokens.num)
        for part in _parts(mask, degree):
            excess[part] = excess_of(question, part, of)
        return Variant.of_excess({**parameters, **sizes_of(question, mask, of)}, query, excess)

    test, fit = _test(question, mask, others), _fit(question, mask, others)
    return Claim(cause, test, variant, fit=fit, otherwise=_too_few(question, mask, others))


def _parts(mask: Bools, degree: NDArray[np.floating] | None) -> list[Bools]:
    """Returns the touched tokens in parts of like degree, each with as many as tell something."""
    if degree is None:
        return [mask]
    num = min(_MOST_PARTS, int(np.sum(mask)) // _FEWEST_IN_PART)
    edges = np.unique(np.quantile(degree[mask], np.linspace(0, 1, max(num, 1) + 1)[1:-1]))
    level = np.searchsorted(edges, degree, side="left")
    return [part for one in range(len(edges) + 1) if np.any(part := mask & (level == one))]


def _too_few(question: Question, mask: Bools, others: Bools) -> str | None:
    """Returns what is said of a claim that hardly any tokens could refute; None of any other."""
    num_requests = int(np.sum(question.tokens.per_request(others.astype(np.float64))[0] > 0))
    if num_requests >= FEWEST_WITHIN:
        return None
    return (
        f"it would touch {int(np.sum(mask)):,} of {question.tokens.num:,} compared tokens: there are hardly any others "
        "to hold them against"
    )


def _test(question: Question, mask: Bools, others: Bools) -> Test:
    """Returns the test of tokens against others of their request, or of requests against requests, or of both.

    Of both where some requests have both kinds of tokens, and some of the others either kind: then each counts by its
    part of the variance of what is claimed.
    """
    tokens, score = question.tokens, question.score
    inside, outside = mask & tokens.finite, others & tokens.finite
    gains = tokens.means(score, inside) - tokens.means(score, outside)
    shares = tokens.means(mask.astype(np.float64), inside | outside)
    mixed = ~np.isnan(gains) & question.tested
    within = Within(np.where(question.tested, np.nan_to_num(gains), 0.0)[None, :])
    is_told_between = all(np.any((shares == kind) & question.tested) for kind in (0, 1))
    if np.sum(mixed) >= FEWEST_WITHIN and not is_told_between:
        return within
    labels = np.where(question.tested, shares, np.nan)[None, :]
    strata = strata_of(question, labels)
    # Requests with neither kind change places among themselves.
    strata = np.where(np.isnan(shares), np.max(strata) + 1, strata)
    between = Between(labels, tokens.means(score, inside | outside), strata)
    if np.sum(mixed) < FEWEST_WITHIN:
        return between
    return Joint(within, between, _part_within(question, inside, outside))


def _part_within(question: Question, inside: Bools, outside: Bools) -> float:
    """Returns which part of the variance of being touched lies within requests, 0 to 1."""
    tested = (inside | outside) & question.tested[question.tokens.request]
    touched, counts = question.tokens.per_request(inside.astype(np.float64), tested)
    shares = np.divide(touched, counts, out=np.zeros_like(touched), where=counts > 0)
    within, mean = float(np.sum(touched * (1 - shares))), float(np.sum(touched) / np.sum(counts))
    return within / (within + float(np.sum(counts * np.square(shares - mean))))


def _fit(question: Question, mask: Bools, others: Bools) -> float:
    """Returns the sum of squares that a step explains, over the tokens of chosen requests."""
    tokens = question.tokens
    chosen = tokens.finite & question.chosen[tokens.request]
    inside, outside = question.score[chosen & mask], question.score[chosen & others]
    if not len(inside) or not len(outside):
        return 0.0
    step = max(float(np.mean(inside) - np.mean(outside)), 0.0)
    return step * step * len(inside) * len(outside) / (len(inside) + len(outside))


def strata_of(question: Question, labels: Floats) -> Integers:
    """Returns strata of requests, int64 [R], by the length of their prompts; one, where labels vary in none of them."""
    lengths = np.nan_to_num(question.tokens.means(question.tokens["num_prompt_tokens"]))
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, _NUM_STRATA + 1)[1:-1]))
    strata: Integers = np.searchsorted(edges, lengths)
    for row in labels:
        for stratum in np.unique(strata):
            known = row[(strata == stratum) & ~np.isnan(row)]
            if len(known) and known.max() > known.min():
                return strata
    return np.zeros_like(strata)


def excess_of(question: Question, mask: Bools, others: Bools | None = None) -> float:
    """Returns which share of the squares of the touched tokens' residual goes beyond that of the others, 0 to 1.

    The others are weighed so that they have the touched tokens' probabilities. Estimated on requests that nothing was
    chosen by, unless all were.
    """
    tokens = question.tokens
    estimated = ~question.chosen[tokens.request] if not np.all(question.chosen) else np.ones(tokens.num, bool)
    squares, bins = np.square(question.residual), tokens.probability_bins
    inside = mask & tokens.finite & estimated
    outside = (~mask if others is None else others) & tokens.finite & estimated
    total = float(np.sum(squares[inside]))
    if total <= 0 or not np.any(outside):
        return 0.0
    num_bins = int(bins.max()) + 1
    counts = np.bincount(bins[outside], minlength=num_bins)
    overall = float(np.mean(squares[outside]))
    means = np.bincount(bins[outside], squares[outside], num_bins) / np.maximum(counts, 1)
    means = np.where(counts >= 20, means, overall)
    expected = float(np.sum(means[bins[inside]]))
    return float(np.clip(1 - max(expected, 0.0) / total, 0, 1))


def sizes_of(question: Question, mask: Bools, others: Bools | None = None) -> dict[str, object]:
    """Returns k2 of the touched tokens and of the others."""
    squares, finite = np.square(question.residual), question.tokens.finite
    others = ~mask if others is None else others
    named = (("k2_touched", mask & finite), ("k2_others", others & finite))
    return {name: float(np.mean(squares[chosen]) / 2) if np.any(chosen) else 0.0 for name, chosen in named}
