"""Causes whose contribution to each token is arithmetic on recorded values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracekit.analysis.explain.base import Cause, Claim, Question, Variant
from tracekit.analysis.explain.significance import Within
from tracekit.analysis.explain.tokens import Floats

# A difference in nat larger than this counts as this: one token must not decide for its request.
_LARGEST = 2.0
# Tokens of a request that follow each other differ alike; those of two blocks of so many hardly. Where there would be
# more blocks than the most, they are longer.
_BLOCK = 8
_MOST_BLOCKS = 10_000


@dataclass(frozen=True)
class Exact:
    """A variant whose contributions are known, whatever else is at work.

    Attributes:
        parameters: what it says, by name.
        query: the evidence; its column `delta` holds the contributions.
        contributions: float64 [N] in nat, 0 where there is none.
    """

    parameters: dict[str, Any]
    query: str
    contributions: Floats

    @classmethod
    def of(cls, question: Question, query: str, **parameters: object) -> Exact:
        """Runs the evidence for its contributions; a token for which they are not finite has none."""
        found = question.tokens.values(query, "delta")
        return cls(parameters, query, np.where(np.isfinite(found), found, 0.0))

    def negated(self, query: str, **parameters: object) -> Exact:
        """Returns the variant of the opposite contributions, which another query holds."""
        return Exact(parameters, query, -self.contributions)

    def variant(self) -> Variant:
        return Variant(self.parameters, self.query, lambda _: self.contributions)


def by_exact_deltas(cause: Cause, question: Question, variants: Sequence[Exact]) -> Claim | None:
    """Claims that taking contributions away leaves less: what is tested is by how much, request by request."""
    kept = [one for one in variants if np.any(one.contributions != 0)]
    if not kept:
        return None
    gains = _aligned([_gains(question, one.contributions) for one in kept])
    return Claim(cause, Within(gains), lambda best: kept[best].variant())


def _aligned(gains: Sequence[Floats]) -> Floats:
    """Returns rows of one length, filled up with blocks that tell nothing."""
    length = max(len(row) for row in gains)
    return np.array([np.pad(row, (0, length - len(row))) for row in gains])


def _gains(question: Question, delta: Floats) -> Floats:
    """Returns what taking contributions away leaves less, float64 [U]: U blocks of a request's touched tokens."""
    residual = question.residual
    touched = np.flatnonzero((delta != 0) & question.tokens.finite)
    request = question.tokens.request[touched]
    # On all requests, for nothing is estimated that would have to be kept apart from the test.
    begins = np.flatnonzero(np.diff(request, prepend=-1))
    place = np.arange(len(touched)) - np.repeat(begins, np.diff(begins, append=len(touched)))
    length = max(_BLOCK, len(touched) // _MOST_BLOCKS)
    block = np.cumsum(place % length == 0) - 1
    before, after = (np.minimum(np.abs(left[touched]), _LARGEST) for left in (residual, residual - delta))
    return np.bincount(block, before - after).astype(np.float64)
