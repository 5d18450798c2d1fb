"""Like logits, but one side's softmax has more entries: an offset of one sign at every position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import Cause, Claim, Question, Undecided
from tracekit.analysis.explain.exact import Exact, by_exact_deltas

# Offsets must add up to nearly the sum of their sizes, be more than float32 sums are off, and logits must differ less.
_ONE_SIDED = 0.9
_LEAST = 1e-5
_LESS = 0.5


@dataclass(frozen=True)
class PaddedVocabulary(Cause):
    """Padded vocabulary."""

    name: str = "padded_vocabulary"
    title: str = "more entries inside one side's softmax: padded vocabulary"
    rung: int = 44
    settings: tuple[str, ...] = ("vocab_size",)
    next_step: str = "cut the logits to the tokenizer's vocabulary before log_softmax"

    def claim(self, question: Question) -> Claim | Undecided | None:
        tokens = question.tokens
        if not tokens.known("a_logit", "b_logit", "a_logsumexp", "b_logsumexp"):
            return None
        offset = tokens["a_logsumexp"] - tokens["b_logsumexp"]
        apart = np.abs(tokens["a_logit"] - tokens["b_logit"])
        known = np.isfinite(offset) & np.isfinite(apart)
        offset, apart = offset[known], apart[known]
        if not len(offset) or abs(np.sum(offset)) < _ONE_SIDED * np.sum(np.abs(offset)):
            return None
        if np.mean(np.abs(offset)) < _LEAST or np.mean(apart) > _LESS * np.mean(np.abs(offset)):
            return None
        side = "b" if np.median(offset) < 0 else "a"
        one = Exact.of(question, self.query(), padded_side=side, offset=float(np.median(offset)))
        return by_exact_deltas(self, question, [one])
