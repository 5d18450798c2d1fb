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
    next_step: str = "record again with chunked prefill off, or with a larger budget"
