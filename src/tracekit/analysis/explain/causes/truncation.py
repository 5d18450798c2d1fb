"""One side's values are of the distribution that top-p, top-k or min-p left: an offset of -ln(kept mass) a position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import Cause, Claim, Question, Undecided
from tracekit.analysis.explain.exact import Exact, by_exact_deltas


@dataclass(frozen=True)
class Truncation(Cause):
    """Top-p, top-k or min-p."""

    name: str = "truncation"
    title: str = "raw against processed: top-p, top-k or min-p on one side only"
    rung: int = 30
    settings: tuple[str, ...] = ("logprobs_mode",)
    next_step: str = "set logprobs_mode=processed_logprobs, or renormalise in the trainer"

    def claim(self, question: Question) -> Claim | Undecided | None:
        variants: list[Exact] = []
        for side in ("a", "b"):
            added = self._of(question, side)
            # B's own mass tells only what A's does not.
            if added is not None and (side == "a" or not variants):
                variants += [
                    added,
                    added.negated(self.query(side=side, sign=-1), **{**added.parameters, "applied_by": "a"}),
                ]
        for one in variants:
            one.parameters["mean_offset"] = float(np.mean(one.contributions[one.contributions != 0]))
        return by_exact_deltas(self, question, variants)

    def _of(self, question: Question, side: str) -> Exact | None:
        """Returns what applying a side's own truncation adds; None where it truncates nothing."""
        tokens = question.tokens
        if not tokens.known(f"{side}_kept_mass"):
            return None
        added = Exact.of(question, self.query(side=side, sign=1), applied_by="b")
        touched = added.contributions != 0
        if not np.any(touched):
            return None
        added.parameters["mean_kept_mass"] = float(np.mean(tokens[f"{side}_kept_mass"][touched]))
        return added
