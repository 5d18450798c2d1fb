"""Tokens that a draft proposed, from the second of a step on, differ more than the others."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.analysis.explain.contrast import Contrast


@dataclass(frozen=True)
class SpeculativeDecoding(Contrast):
    """Speculative decoding."""

    name: str = "speculative_decoding"
    title: str = "speculative decoding"
    rung: int = 72
    settings: tuple[str, ...] = ("engine_config",)
    next_step: str = "record again without a draft"
