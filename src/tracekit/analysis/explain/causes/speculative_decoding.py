"""Tokens that a draft proposed differ more than the others: all of them, or those from the second of a step on."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.analysis.explain.base import Claim, Question, Undecided
from tracekit.analysis.explain.contrast import Contrast, by_contrast

# From the second on a step's tokens are verified in one pass; the first one too goes through another sampler.
_TOUCHED = {
    "from the second of a step": "coalesce(a_draft_index, 0) <> coalesce(b_draft_index, 0)",
    "all": "(a_draft_index IS NULL) <> (b_draft_index IS NULL)",
}


@dataclass(frozen=True)
class SpeculativeDecoding(Contrast):
    """Speculative decoding."""

    name: str = "speculative_decoding"
    title: str = "speculative decoding"
    rung: int = 72
    settings: tuple[str, ...] = ("speculative_config",)
    next_step: str = "record again without a draft"

    def claim(self, question: Question) -> Claim | Undecided | None:
        told = [
            by_contrast(self, question, self.query(touched=touched), {"draft_tokens": which})
            for which, touched in _TOUCHED.items()
        ]
        claims = [one for one in told if isinstance(one, Claim)]
        # The first of equals: that of fewer tokens.
        return max(claims, key=lambda claim: claim.fit) if claims else told[0]
