"""Whether a difference between tokens is more than chance: one maximum over all that was tried, over whole requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.tokens import Floats, Integers

# Smaller than this no p-value is told apart from 1 / (draws + 1).
NUM_DRAWS = 999
_BLOCK = 100


@dataclass(frozen=True)
class Within:
    """Gains of requests that are as likely positive as negative where the claim is void: their signs are drawn.

    Attributes:
        gains: float64 [S, R]: S variants of the claim, of which the best is taken; 0 for a request that tells nothing.
    """

    gains: Floats


@dataclass(frozen=True)
class Between:
    """Scores of requests that the claim says differ by a label: labels are drawn anew within strata.

    Attributes:
        labels: float64 [S, R]: S variants of the claim; NaN for a request that takes no part.
        scores: float64 [R].
        strata: int64 [R]: requests that may change places.
    """

    labels: Floats
    scores: Floats
    strata: Integers


@dataclass(frozen=True)
class Joint:
    """One claim told by tokens within requests and by requests held against each other, which chance draws apart.

    Attributes:
        within, between: of one variant each.
        weight: of what is told within requests, 0 to 1: its part of the label's variance.
    """

    within: Within
    between: Between
    weight: float


Test = Within | Between | Joint


@dataclass(frozen=True)
class Significance:
    """How a claim stood the test.

    Attributes:
        statistic: the studentised statistic of its best variant.
        variant: which of the variants that is.
        p_value: the share of draws in which the largest statistic of all claims is no smaller.
    """

    statistic: float
    variant: int
    p_value: float


def judge(claims: Sequence[Test], seed: int = 0, num_draws: int = NUM_DRAWS) -> list[Significance]:
    """Tests claims together, with the largest statistic of all in each draw (Westfall and Young's single-step max-T).

    All claims see the same draws, so that what they share does not count twice.
    """
    observed = [_statistics(claim) for claim in claims]
    best = np.array([np.max(found) if found.size else -np.inf for found in observed])
    largest = np.full(num_draws, -np.inf)
    random = np.random.default_rng(seed)
    num_requests = max((_num_requests(claim) for claim in claims), default=0)
    for start in range(0, num_draws, _BLOCK):
        size = min(_BLOCK, num_draws - start)
        signs = random.integers(0, 2, (size, num_requests), np.int8) * 2.0 - 1
        keys = random.random((size, num_requests))
        for claim in claims:
            largest[start : start + size] = np.maximum(largest[start : start + size], _drawn(claim, signs, keys))
    return [
        Significance(
            float(statistic),
            int(np.argmax(found)) if found.size else 0,
            float((1 + np.sum(largest >= statistic - 1e-9)) / (num_draws + 1)) if np.isfinite(statistic) else 1.0,
        )
        for statistic, found in zip(best, observed, strict=True)
    ]


def _num_requests(claim: Test) -> int:
    if isinstance(claim, Joint):
        return _num_requests(claim.within)
    return claim.gains.shape[1] if isinstance(claim, Within) else len(claim.scores)


def _drawn(claim: Test, signs: Floats, keys: Floats) -> Floats:
    """Returns the largest statistic of a claim's variants in each draw."""
    if isinstance(claim, Joint):
        return _joined(claim, _signed(claim.within, signs), _permuted(claim.between, keys))
    return _signed(claim, signs) if isinstance(claim, Within) else _permuted(claim, keys)


def _joined(claim: Joint, within: Floats, between: Floats) -> Floats:
    """Returns the weighted sum of two studentised statistics, of as much spread as each of them."""
    return np.asarray(np.sqrt(claim.weight) * within + np.sqrt(1 - claim.weight) * between)


def _statistics(claim: Test) -> Floats:
    if isinstance(claim, Joint):
        return _joined(claim, _statistics(claim.within), _statistics(claim.between))
    if isinstance(claim, Within):
        return _studentised(claim.gains.sum(axis=1), claim.gains)
    centred, scores = _centred(claim)
    return np.asarray(_correlated(centred, scores[None, :])[0])


def _studentised(sums: Floats, gains: Floats) -> Floats:
    spread = np.sqrt(np.sum(gains * gains, axis=1))
    found: Floats = np.divide(sums, spread, out=np.full(sums.shape, -np.inf), where=spread > 0)
    return found


def _signed(claim: Within, signs: Floats) -> Floats:
    spread = np.sqrt(np.sum(claim.gains * claim.gains, axis=1))
    kept = spread > 0
    if not np.any(kept):
        return np.full(len(signs), -np.inf)
    scaled = claim.gains[kept] / spread[kept, None]
    return np.asarray(np.max(signs[:, : scaled.shape[1]] @ scaled.T, axis=1))


def _centred(claim: Between) -> tuple[Floats, Floats]:
    """Returns labels [S, R] and scores [R] less their means in the stratum, 0 where they take no part."""
    strata = claim.strata
    sizes = np.maximum(np.bincount(strata), 1)
    known = ~np.isnan(claim.scores)
    counts = np.maximum(np.bincount(strata, known), 1)
    means = np.bincount(strata, np.where(known, claim.scores, 0)) / counts
    scores = np.where(known, claim.scores - means[strata], 0)
    rows = []
    for row in claim.labels:
        takes = ~np.isnan(row)
        counts = np.maximum(np.bincount(strata, takes, len(sizes)), 1)
        means = np.bincount(strata, np.where(takes, row, 0), len(sizes)) / counts
        rows.append(np.where(takes, row - means[strata], 0))
    return np.array(rows), np.asarray(scores)


def _correlated(labels: Floats, scores: Floats) -> Floats:
    """Returns the studentised covariances of rows of scores [B, R] with rows of labels [S, R]: [B, S]."""
    spread = np.sqrt((labels * labels) @ (scores * scores).T).T
    sums = scores @ labels.T
    found: Floats = np.divide(sums, spread, out=np.full(sums.shape, -np.inf), where=spread > 0)
    return found


def _permuted(claim: Between, keys: Floats) -> Floats:
    labels, scores = _centred(claim)
    keys = keys[:, : len(scores)]
    order = np.argsort(claim.strata, kind="stable")
    # Within a stratum by random keys, strata in their order.
    drawn = np.argsort(claim.strata[None, :] + keys, axis=1)
    mixed = np.empty_like(keys)
    mixed[:, order] = scores[drawn]
    return np.asarray(np.max(_correlated(labels, mixed), axis=1))
