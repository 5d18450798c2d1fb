"""The runs say that one side's weights are quantised otherwise: what nothing else explains may be that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import TAIL, Cause, Claim, Question, Undecided, Variant
from tracekit.analysis.explain.significance import Within


@dataclass(frozen=True)
class Quantisation(Cause):
    """Quantised weights."""

    name: str = "quantisation"
    title: str = "quantised weights on one side"
    rung: int = 86
    tier: int = TAIL
    settings: tuple[str, ...] = ("quantization", "kv_cache_dtype")
    next_step: str = "replay from the weights before they were quantised"

    def claim(self, question: Question) -> Claim | Undecided | None:
        if question.setting("a", "quantization") == question.setting("b", "quantization"):
            return None
        excess = question.tokens.means(np.square(question.residual) - question.noise, question.tokens.finite)
        query = self.query()
        parameters = {side: question.setting(side, "quantization") for side in "ab"}
        return Claim(
            self,
            Within(np.where(question.tested, np.nan_to_num(excess), 0.0)[None, :]),
            lambda _: Variant(parameters, query, lambda residual: residual),
            verdict="possible",
        )
