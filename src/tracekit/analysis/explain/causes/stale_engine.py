"""Tokens that A was sure of and B finds unlikely, and few the other way round: as if A had other weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import TAIL, Cause, Claim, Question, Undecided, Variant
from tracekit.analysis.explain.significance import Within
from tracekit.analysis.explain.versions import Versions

# From which probability on a token is one that a side is sure of, and how far in nat it then moves.
_KINDS = ((0.5, 1.0), (0.5, 2.0), (0.3, 1.0))


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
        versions = Versions.of(question)
        behind = 0 if versions is None else versions.behind
        gains, variants = [], []
        for sure, far in _KINDS:
            down = (tokens["a_raw"] >= np.log(sure)) & (question.residual < -far)
            up = (of_b >= np.log(sure)) & (question.residual > far)
            lost = tokens.per_request(down.astype(np.float64) - up)[0]
            gains.append(np.where(question.tested, lost, 0.0))
            parameters = {"num_confident_tokens_lost": int(down.sum()), "num_gained": int(up.sum()), "confident": sure}
            parameters |= {"versions_behind": behind} if behind else {}
            query = self.query(sure=float(np.log(sure)), far=far)
            variants.append(Variant(parameters, query, lambda residual: residual))
        return Claim(self, Within(np.array(gains)), variants.__getitem__, verdict="found" if behind else "possible")
