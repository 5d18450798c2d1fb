"""Requests that were preempted, and computed again, differ more than the others."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.analysis.explain.contrast import Contrast


@dataclass(frozen=True)
class Preemption(Contrast):
    """Preemption and recomputation."""

    name: str = "preemption"
    title: str = "preemption and recomputation"
    rung: int = 68
    settings: tuple[str, ...] = ("max_num_seqs",)
    next_step: str = "record again with a larger KV cache"
