"""The trainer moves on and the engine does not: differences grow with the trainer's steps under one weight version."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import FACT, Cause, Claim, Question, Undecided
from tracekit.analysis.explain.tokens import Floats
from tracekit.analysis.explain.trend import by_trend


@dataclass(frozen=True)
class FrozenEngine(Cause):
    """Engine behind a moving trainer."""

    name: str = "frozen_engine"
    title: str = "drift over the trainer's steps: an engine whose weights hardly move"
    rung: int = 104
    tier: int = FACT
    settings: tuple[str, ...] = ("dtype",)
    next_step: str = "compare checksums of the engine's weights before and after an update; update from an fp32 master"

    def claim(self, question: Question) -> Claim | Undecided | None:
        tokens = question.tokens
        if _varies(tokens["a_weight_version"]):
            return None
        for name in ("b_trainer_step", "b_weight_version"):
            if _varies(tokens[name]):
                return by_trend(self, question, tokens[name], name, self.query(covariate=name))
        return None


def _varies(values: Floats) -> bool:
    known = values[~np.isnan(values)]
    return len(known) > 0 and bool(known.min() < known.max())
