"""Tokens whose weights are another number of updates away from B's than those that agree best differ more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import FACT, Cause, Claim, Question, Undecided
from tracekit.analysis.explain.contrast import by_contrast
from tracekit.analysis.explain.tokens import Tokens, rows


@dataclass(frozen=True)
class WeightUpdate(Cause):
    """In-flight weight update."""

    name: str = "weight_update"
    title: str = "in-flight weight update"
    rung: int = 100
    tier: int = FACT
    next_step: str = "replay under the recorded schedule of weights: --weights-schedule recorded"

    def claim(self, question: Question) -> Claim | Undecided | None:
        tokens = question.tokens
        if not tokens.known("a_weight_version"):
            return None
        lags = tokens["a_weight_version"] - np.nan_to_num(tokens["b_weight_version"])
        known = lags[~np.isnan(lags)]
        if not len(known) or known.min() == known.max():
            return None
        values = [float(value) for value in np.unique(known)]
        sizes = [np.mean(question.score[lags == value]) for value in values]
        reference = values[int(np.argmin(sizes))]
        query = self.query(lag=int(reference))
        return by_contrast(self, question, query, _edges(tokens, query))


def _edges(tokens: Tokens, query: str) -> dict[str, object]:
    """Returns which versions are touched, and in which step each began."""
    found = rows(
        tokens.connection,
        f"SELECT a_weight_version AS version, min(a_step_id) AS step FROM ({query}) AS q GROUP BY ALL ORDER BY ALL",
    )
    return {"versions": [row["version"] for row in found], "steps": [row["step"] for row in found]}
