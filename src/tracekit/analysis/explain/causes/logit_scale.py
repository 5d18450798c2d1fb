"""B's raw logits are A's times one number."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.analysis.explain.base import Cause, Claim, Question, Undecided
from tracekit.analysis.explain.curves import CURVE_ERROR, Logits, by_curve, slope_of_values, without_logits


@dataclass(frozen=True)
class LogitScale(Cause):
    """Logit scale."""

    name: str = "logit_scale"
    title: str = "logits multiplied by one number"
    rung: int = 42
    next_step: str = "compare logit_scale and final scaling in both model configurations"
    error: float = CURVE_ERROR

    def claim(self, question: Question) -> Claim | Undecided | None:
        logits = Logits.of(question)
        scale = None if logits is None else logits.scale
        if scale is None:
            return without_logits(self, question)
        return by_curve(self, question, "scale", scale, slope=slope_of_values(question))
