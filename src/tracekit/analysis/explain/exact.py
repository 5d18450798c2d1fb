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
_TINY = 1e-12


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
        return cls(parameters, query, np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0))

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
    gains = np.array([_gains(question, one.contributions) for one in kept])
    return Claim(cause, Within(gains), lambda best: kept[best].variant())


def _gains(question: Question, delta: Floats) -> Floats:
    residual, tokens = question.residual, question.tokens
    touched = (delta != 0) & tokens.finite
    before = tokens.means(np.minimum(np.abs(residual), _LARGEST), touched)
    after = tokens.means(np.minimum(np.abs(residual - delta), _LARGEST), touched)
    # In proportion, so that no request with large differences decides for all; and on all requests, for nothing is
    # estimated that would have to be kept apart from the test.
    return np.asarray(np.nan_to_num((before - after) / np.maximum(before + after, _TINY)))
