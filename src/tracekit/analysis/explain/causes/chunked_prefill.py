"""Requests whose prompt was computed in more pieces on one side differ more than the others."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.analysis.explain.contrast import Contrast


@dataclass(frozen=True)
class ChunkedPrefill(Contrast):
    """Chunked prefill."""

    name: str = "chunked_prefill"
    title: str = "chunked prefill"
    rung: int = 66
    settings: tuple[str, ...] = ("chunked_prefill", "max_num_batched_tokens")
    next_step: str = "tracekit bisect --vary chunked_prefill: replay with whole prompts"
