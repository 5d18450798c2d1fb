"""Penalties, biases and masks that one side's values have and the other's lack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tracekit.analysis.explain.base import Cause, Claim, Question, Undecided
from tracekit.analysis.explain.exact import Exact, by_exact_deltas

_KINDS = {"has_penalties": "penalties", "is_biased": "bias", "is_masked": "mask"}


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
        present = [kind for kind in _KINDS if tokens[kind].any()]
        # All of them at once only where one side may lack more than one.
        variants = [
            one
            for kind in (present if len(present) == 1 else [*present, "is_penalised"] if present else [])
            for one in self._of(question, kind)
        ]
        return by_exact_deltas(self, question, variants)

    def _of(self, question: Question, kind: str) -> Iterator[Exact]:
        for side, curves in (("a", "_curves"), ("b", "_b_curves")):
            if question.tokens.known(f"{side}_processed", f"{side}_kept_mass"):
                what = {"side": side, "curves": curves, "of": kind}
                told = {"of": _KINDS.get(kind, "all")}
                added = Exact.of(question, self.query(**what, sign=1), applied_by="b", **told)
                yield added
                yield added.negated(self.query(**what, sign=-1), applied_by="a", **told)
