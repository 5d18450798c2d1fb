"""B's values belong to the token before or after: A's agree better with those than with the ones beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import Cause, Claim, Question, Undecided
from tracekit.analysis.explain.exact import Exact, by_exact_deltas


@dataclass(frozen=True)
class MisalignedRows(Cause):
    """Misaligned rows."""

    name: str = "misaligned_rows"
    title: str = "rows misaligned by one"
    rung: int = 5
    next_step: str = "shift B's logprobs by one token, and compare again"

    def claim(self, question: Question) -> Claim | Undecided | None:
        tokens = question.tokens
        values = tokens["b_value"]
        variants = []
        for shift in (1, -1):
            beside = np.roll(values, -shift)
            # Beside it stands the next token of the same request, or none.
            follows = np.roll(tokens.place, -shift) - tokens.place == shift
            known = follows & np.isfinite(values) & np.isfinite(beside)
            delta = np.subtract(values, beside, out=np.zeros_like(values), where=known)
            variants.append(Exact({"shift": shift}, self.query(shift=shift), delta))
        return by_exact_deltas(self, question, variants)
