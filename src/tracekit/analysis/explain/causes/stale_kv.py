"""Tokens that attended to KV entries older than their weights, on one side only, differ more than the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import FACT, Cause, Claim, Question, Undecided
from tracekit.analysis.explain.contrast import by_contrast
from tracekit.analysis.explain.versions import Versions, updates

_UPDATE = "weight_update"


@dataclass(frozen=True)
class StaleKv(Cause):
    """KV entries of older weights."""

    name: str = "stale_kv"
    title: str = "KV entries of older weights"
    rung: int = 90
    tier: int = FACT
    next_step: str = "replay under the recorded schedule of weights, once with --kv keep and once with --kv clear"

    def claim(self, question: Question) -> Claim | Undecided | None:
        versions = Versions.of(question)
        if versions is None or not np.any(versions.stale & versions.agrees):
            return None
        if not np.any(versions.fresh):
            return Undecided(
                self,
                "all tokens of the weights at which both sides agree best attended to older KV entries; "
                + self.next_step,
            )
        query = self.query(lag=versions.reference)
        # Once an update has been found, what it left of the tokens of other weights is as large as anything else.
        others = None if _UPDATE in question.found else versions.agrees
        return by_contrast(self, question, query, updates(question), others, versions.fresh, versions.age)
