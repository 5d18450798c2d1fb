"""Differences step up or down with the number of requests in the batch, or come where it is not the same."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tracekit.analysis.explain.base import FACT, Cause, Claim, Question, Undecided
from tracekit.analysis.explain.contrast import by_contrast
from tracekit.analysis.explain.threshold import Thresholds, by_threshold

_MOST_EDGES = 64


@dataclass(frozen=True)
class BatchDependence(Cause):
    """Batch dependence."""

    name: str = "batch_dependence"
    title: str = "batch dependence"
    rung: int = 64
    tier: int = FACT
    settings: tuple[str, ...] = ("max_num_seqs", "max_num_batched_tokens")
    next_step: str = "tracekit bisect --vary batch: replay in other batches"

    def claim(self, question: Question) -> Claim | Undecided | None:
        claims = [claim for side in ("a", "b") for claim in self._of(question, side)]
        unequal = self._of_unequal(question)
        if isinstance(unequal, Claim):
            claims.append(unequal)
        best = max(claims, key=lambda claim: claim.fit, default=None)
        if best is None or unequal is None:
            return best or unequal
        return replace(best, otherwise=unequal.reason if isinstance(unequal, Undecided) else unequal.otherwise)

    def _of_unequal(self, question: Question) -> Claim | Undecided | None:
        """Claims that tokens of equal batches agree better than the others."""
        if not question.tokens.known("a_num_requests", "b_num_requests"):
            return None
        return by_contrast(self, question, self.query("_unequal"), {"batches": "not of equal size"})

    def _of(self, question: Question, side: str) -> Iterator[Claim]:
        """Yields that tokens of batches as large as some number differ more, and that those of smaller ones do."""
        name = f"{side}_num_requests"
        thresholds = Thresholds.of(question, name, _MOST_EDGES) if question.tokens.known(name) else None
        if thresholds is not None:
            for below, comparison in ((False, ">="), (True, "<")):
                describe = functools.partial(self._describe, side, comparison)
                yield by_threshold(self, question, replace(thresholds, below=below), describe)

    def _describe(self, side: str, comparison: str, edge: float) -> tuple[dict[str, object], str]:
        query = self.query(side=side, comparison=comparison, num_requests=int(edge))
        return {"side": side, "num_requests": f"{comparison} {int(edge)}", "edge": int(edge)}, query
