"""One side's logits lie on the grid of a 16-bit type and the other's do not: rounded alike they agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import Cause, Claim, Question, Undecided
from tracekit.analysis.explain.curves import slope_of_values
from tracekit.analysis.explain.exact import Exact, by_exact_deltas
from tracekit.analysis.explain.grids import BITS, narrowest


@dataclass(frozen=True)
class HeadOutputRounding(Cause):
    """Head output rounded to 16 bits."""

    name: str = "head_output_rounding"
    title: str = "head output rounded to 16 bits on one side"
    rung: int = 50
    settings: tuple[str, ...] = ("head_output_dtype",)
    next_step: str = "replay the hidden states through both heads: --backend head --head-dtype float32 and bfloat16"

    def claim(self, question: Question) -> Claim | Undecided | None:
        tokens = question.tokens
        if not tokens.known("a_logit", "b_logit", "a_logsumexp", "b_logsumexp"):
            return None
        grids = {side: narrowest(tokens[f"{side}_logit"]) for side in "ab"}
        if (grids["a"] is None) == (grids["b"] is None):
            return None
        rounded, full = ("a", "b") if grids["a"] else ("b", "a")
        dtype = str(grids[rounded])
        query = self.query(
            rounded=rounded, full=full, bits=BITS[dtype], sign=1 if full == "b" else -1, slope=slope_of_values(question)
        )
        logits = tokens[f"{full}_logit"]
        step = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(logits), 1e-9))) - BITS[dtype])
        agree = np.mean(np.abs(tokens[f"{rounded}_logit"] - logits) <= step / 2)
        one = Exact.of(question, query, rounded_side=rounded, dtype=dtype, equal_when_rounded=float(agree))
        return by_exact_deltas(self, question, [one])
