"""Requests with an adapter differ more than those without."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.analysis.explain.contrast import Contrast


@dataclass(frozen=True)
class Lora(Contrast):
    """LoRA adapter."""

    name: str = "lora"
    title: str = "LoRA adapter"
    rung: int = 95
    next_step: str = "replay with the adapter merged, and with the base model alone (--lora)"
