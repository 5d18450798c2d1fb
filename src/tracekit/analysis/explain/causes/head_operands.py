"""Equal hidden states on both sides, and other logits: what differs was made in the last projection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import TAIL, Cause, Claim, Question, Undecided, Variant
from tracekit.analysis.explain.queries import query
from tracekit.analysis.explain.significance import Within
from tracekit.analysis.explain.tokens import rows

_DTYPES = ("head_weight_dtype", "head_operand_dtype")
# Products of equal operands in float32 differ by batch shape, in nat by no more than this.
_SHAPES = 1e-4


@dataclass(frozen=True)
class HeadOperands(Cause):
    """Head operands."""

    name: str = "head_operands"
    title: str = "last projection: dtype or values of its operands"
    rung: int = 52
    tier: int = TAIL
    settings: tuple[str, ...] = _DTYPES
    next_step: str = "replay the hidden states in each dtype: --backend head --head-dtype bfloat16 and float32"

    def claim(self, question: Question) -> Claim | Undecided | None:
        evidence = self._evidence(question)
        if evidence is None:
            apart = any(question.setting("a", name) != question.setting("b", name) for name in _DTYPES)
            return (
                Undecided(self, "hidden states on both sides would tell it from the body (--hidden)") if apart else None
            )
        tokens, mask = question.tokens, question.tokens.mask(evidence)
        if not np.any(mask) or np.mean(np.square(question.residual[mask])) < _SHAPES**2:
            return None
        touched = mask.astype(np.float64)
        excess = tokens.means(np.square(question.residual) - question.noise, mask & tokens.finite)
        parameters = {
            f"{side}_{name}": value
            for name in _DTYPES
            for side in "ab"
            if (value := question.setting(side, name)) is not None
        }
        return Claim(
            self,
            Within(np.where(question.tested, np.nan_to_num(excess), 0.0)[None, :]),
            lambda _: Variant(parameters, evidence, lambda residual: residual * touched),
        )

    def _evidence(self, question: Question) -> str | None:
        """Returns the evidence that these traces have; None where they have none."""
        (known,) = rows(question.tokens.connection, query("hidden_rows"))
        if known["is_replay"] and {row.get("backend") for row in question.runs["b"]} == {"head"}:
            return self.query("_replayed")
        return self.query() if known["are_there"] else None
