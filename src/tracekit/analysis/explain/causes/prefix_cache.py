"""Requests whose prompt came from a prefix cache differ more than the others."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.analysis.explain.contrast import Contrast


@dataclass(frozen=True)
class PrefixCache(Contrast):
    """Prefix cache."""

    name: str = "prefix_cache"
    title: str = "prefix cache"
    rung: int = 60
    settings: tuple[str, ...] = ("prefix_caching",)
    next_step: str = "tracekit bisect --vary cache: replay without a prefix cache"
