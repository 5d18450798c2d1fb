"""Penalties, biases and masks that one side's values have and the other's lack."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.analysis.explain.base import Cause, Claim, Question, Undecided
from tracekit.analysis.explain.exact import Exact, by_exact_deltas


@dataclass(frozen=True)
class Penalties(Cause):
    """Penalties, bias or mask."""

    name: str = "penalties"
    title: str = "penalties, bias or mask on one side only"
    rung: int = 36
    settings: tuple[str, ...] = ("logprobs_mode",)
    next_step: str = "apply the request's penalties and masks in the trainer, or sample without them"

    def claim(self, question: Question) -> Claim | Undecided | None:
        tokens = question.tokens
        if not tokens["is_penalised"].any():
            return None
        variants = []
        for side, curves in (("a", "_curves"), ("b", "_b_curves")):
            if tokens.known(f"{side}_processed", f"{side}_kept_mass"):
                added = Exact.of(question, self.query(side=side, curves=curves, sign=1), applied_by="b")
                opposite = self.query(side=side, curves=curves, sign=-1)
                variants += [added, added.negated(opposite, applied_by="a")]
        return by_exact_deltas(self, question, variants)
