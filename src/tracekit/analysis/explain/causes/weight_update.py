"""Tokens whose weights are another number of updates away from B's than those that agree best differ more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import FACT, Cause, Claim, Question, Undecided
from tracekit.analysis.explain.contrast import by_contrast
from tracekit.analysis.explain.versions import Versions, updates


@dataclass(frozen=True)
class WeightUpdate(Cause):
    """In-flight weight update."""

    name: str = "weight_update"
    title: str = "in-flight weight update"
    rung: int = 100
    tier: int = FACT
    next_step: str = "replay under the recorded schedule of weights: --weights-schedule recorded"

    def claim(self, question: Question) -> Claim | Undecided | None:
        versions = Versions.of(question)
        if versions is None:
            return None
        if np.all(versions.agrees):
            return Undecided(self, _all_along(versions.behind)) if versions.behind else None
        query = self.query(lag=versions.reference)
        side = "a" if question.tokens.known("a_weight_version") else "b"
        column = question.tokens[f"{side}_weight_version"]
        named = {"versions": ~versions.agrees, "agrees_at_versions": versions.agrees}
        known = ~np.isnan(column)
        parameters = {name: np.unique(column[mask & known]).astype(int).tolist() for name, mask in named.items()}
        # Older KV entries make differences of their own.
        normal = versions.fresh if np.any(versions.fresh) else None
        return by_contrast(self, question, query, parameters | updates(question), versions.agrees, normal)


def _all_along(behind: int) -> str:
    side, other = ("A", "B") if behind > 0 else ("B", "A")
    num = f"{abs(behind)} version{'s' if abs(behind) > 1 else ''}"
    return (
        f"{side}'s weights are {num} behind {other}'s at every compared token: there are no others to hold them "
        f"against; score with {side}'s weights too"
    )
