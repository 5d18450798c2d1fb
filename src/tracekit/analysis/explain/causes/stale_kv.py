"""Tokens that attended to KV entries older than their weights, on one side only, differ more than the others."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.analysis.explain.contrast import Contrast


@dataclass(frozen=True)
class StaleKv(Contrast):
    """KV entries of older weights."""

    name: str = "stale_kv"
    title: str = "KV entries of older weights"
    rung: int = 90
    next_step: str = "replay under the recorded schedule of weights, once with --kv keep and once with --kv clear"
