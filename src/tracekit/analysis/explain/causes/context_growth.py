"""Differences grow smoothly with the position."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.analysis.explain.base import SCAN, Cause, Claim, Question, Undecided
from tracekit.analysis.explain.trend import by_trend


@dataclass(frozen=True)
class ContextGrowth(Cause):
    """Growth with position."""

    name: str = "context_growth"
    title: str = "growth with position: RoPE or context configuration"
    rung: int = 76
    tier: int = SCAN
    settings: tuple[str, ...] = ("max_model_len",)
    next_step: str = "compare rope_theta, rope_scaling and max_position_embeddings of both model configurations"

    def claim(self, question: Question) -> Claim | Undecided | None:
        return by_trend(self, question, question.tokens["position"], "position", self.query())
