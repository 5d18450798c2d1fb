"""One side's sampler rounds temperature and penalties, and logits under penalties, to 16 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import Cause, Claim, Question, Undecided
from tracekit.analysis.explain.exact import Exact, by_exact_deltas
from tracekit.analysis.explain.grids import BITS, narrowest


@dataclass(frozen=True)
class ParameterDtype(Cause):
    """Sampling parameters rounded to 16 bits."""

    name: str = "parameter_dtype"
    title: str = "sampling parameters and penalised logits rounded to 16 bits on one side"
    rung: int = 45
    settings: tuple[str, ...] = ("engine_version", "head_output_dtype")
    next_step: str = "replay the hidden states through --backend head, whose sampler rounds nothing"

    def claim(self, question: Question) -> Claim | Undecided | None:
        tokens = question.tokens
        if not tokens.known("a_processed", "a_kept_mass", "a_logit", "a_logsumexp"):
            return None
        variants = []
        # Parameters are rounded to the dtype of logits.
        of_logits = {narrowest(tokens[f"{side}_logit"]) for side in "ab"}
        for dtype, bits in BITS.items():
            if dtype not in of_logits:
                continue
            rounds_b = Exact.of(question, self.query(bits=bits, sign=1), rounded_side="b", dtype=dtype)
            touched = rounds_b.contributions != 0
            if np.any(touched):
                told = {"dtype": dtype, "mean_change": float(np.mean(np.abs(rounds_b.contributions[touched])))}
                rounds_a = rounds_b.negated(self.query(bits=bits, sign=-1), rounded_side="a", **told)
                rounds_b.parameters.update(told)
                variants += [rounds_a, rounds_b]
        return by_exact_deltas(self, question, variants)
