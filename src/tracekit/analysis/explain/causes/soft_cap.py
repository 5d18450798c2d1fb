"""B's raw logits are A's through c * tanh(z / c)."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.analysis.explain.base import Cause, Claim, Question, Undecided
from tracekit.analysis.explain.curves import CURVE_ERROR, Logits, by_curve, slope_of_values, without_logits


@dataclass(frozen=True)
class SoftCap(Cause):
    """Logit soft cap."""

    name: str = "soft_cap"
    title: str = "logits capped softly on B's side"
    rung: int = 40
    next_step: str = "compare final_logit_softcapping in both model configurations"
    error: float = CURVE_ERROR

    def claim(self, question: Question) -> Claim | Undecided | None:
        logits = Logits.of(question)
        cap = None if logits is None else logits.cap
        if cap is None:
            return without_logits(self, question)
        return by_curve(self, question, "cap", cap, slope=slope_of_values(question))
