"""Differences begin at one absolute position, in all sequences."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.analysis.explain.base import SCAN, Cause, Claim, Question, Undecided
from tracekit.analysis.explain.threshold import Thresholds, by_threshold

_MOST_EDGES = 512


@dataclass(frozen=True)
class AttentionSplit(Cause):
    """Change point at a position."""

    name: str = "attention_split"
    title: str = "change point at a position: attention split or KV cache"
    rung: int = 74
    tier: int = SCAN
    settings: tuple[str, ...] = ("attention_backend", "kv_cache_dtype")
    next_step: str = "replay with another attention backend (--attention), and with the KV cache in another dtype"

    def claim(self, question: Question) -> Claim | Undecided | None:
        thresholds = Thresholds.of(question, "position", _MOST_EDGES)
        if thresholds is None:
            return None
        return by_threshold(
            self, question, thresholds, lambda edge: ({"position": int(edge)}, self.query(position=int(edge)))
        )
