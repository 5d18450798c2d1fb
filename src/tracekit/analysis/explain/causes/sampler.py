"""One side's processed logprobs are not what its own raw logits and the request's parameters make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import Cause, Claim, Question, Undecided
from tracekit.analysis.explain.exact import Exact, by_exact_deltas

# In nat. Candidates tell the sum over the vocabulary at another temperature to a tenth of it.
_TOLERANCE = 0.3
_CURVES = {"a": "_curves", "b": "_b_curves"}


@dataclass(frozen=True)
class Sampler(Cause):
    """A sampler that does not do what it was asked for."""

    name: str = "sampler"
    title: str = "processed logprobs that the request's parameters rule out"
    rung: int = 39
    settings: tuple[str, ...] = ("speculative_config",)
    next_step: str = (
        "replay the hidden states through --backend head, whose sampler does what is asked for, and record again "
        "without drafts and without a fused sampler"
    )
    defers: bool = True

    def claim(self, question: Question) -> Claim | Undecided | None:
        variants = [one for side, sign in (("a", 1), ("b", -1)) if (one := self._of(question, side, sign)) is not None]
        return by_exact_deltas(self, question, variants)

    def _of(self, question: Question, side: str, sign: int) -> Exact | None:
        """Returns what a side's sampler makes of tokens for which it was asked for something else; None without any."""
        tokens = question.tokens
        # Candidates are read for tokens that differ by so much only.
        if not np.any(~tokens.finite | (np.abs(tokens.d) > _TOLERANCE)) or not tokens.known(f"{side}_processed"):
            return None
        query = self.query(
            side=side,
            other="b" if side == "a" else "a",
            request_id="e.request_id" if side == "a" else "e.b_request_id",
            curves=_CURVES[side],
            sign=sign,
            tolerance=_TOLERANCE,
        )
        found = Exact.of(question, query, side=side)
        touched = tokens.mask(query)
        if not np.any(touched):
            return None
        found.parameters["num_not_finite"] = int(np.sum(touched & ~tokens.finite))
        found.parameters["num_in_drafts"] = int(np.sum(touched & ~np.isnan(tokens[f"{side}_draft_index"])))
        return found
