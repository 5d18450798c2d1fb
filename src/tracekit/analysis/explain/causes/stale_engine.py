"""Tokens that A was sure of and B finds unlikely, and few the other way round: as if A had other weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import TAIL, Cause, Claim, Question, Undecided, Variant
from tracekit.analysis.explain.significance import Within
from tracekit.analysis.explain.versions import Versions

_SURE = np.log(0.5)
_FAR = 1.0


@dataclass(frozen=True)
class StaleEngine(Cause):
    """Stale engine."""

    name: str = "stale_engine"
    title: str = "other weights: a stale engine; quantisation, LoRA, MoE and templates can look alike"
    rung: int = 102
    tier: int = TAIL
    settings: tuple[str, ...] = ("model_fingerprint", "quantization")
    next_step: str = "score under several versions: --weights LABEL=PATH, once for each"

    def claim(self, question: Question) -> Claim | Undecided | None:
        tokens = question.tokens
        if not tokens.known("a_raw"):
            return None
        of_b = tokens["b_raw"] if tokens.known("b_raw") else tokens["a_raw"] + question.residual
        down = (tokens["a_raw"] >= _SURE) & (question.residual < -_FAR)
        up = (of_b >= _SURE) & (question.residual > _FAR)
        gains = tokens.per_request(down.astype(np.float64) - up)[0]
        query = self.query()
        parameters = {"num_confident_tokens_lost": int(down.sum()), "num_gained": int(up.sum())}
        versions = Versions.of(question)
        behind = 0 if versions is None else versions.behind
        if behind:
            parameters["versions_behind"] = behind
        return Claim(
            self,
            Within(np.where(question.tested, gains, 0.0)[None, :]),
            lambda _: Variant(parameters, query, lambda residual: residual),
            verdict="found" if behind else "possible",
        )
