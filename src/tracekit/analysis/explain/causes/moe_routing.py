"""Tokens that went to other experts on the two sides differ more than the others."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.analysis.explain.contrast import Contrast


@dataclass(frozen=True)
class MoeRouting(Contrast):
    """MoE routing."""

    name: str = "moe_routing"
    title: str = "moE routing"
    rung: int = 80
    settings: tuple[str, ...] = ()
    next_step: str = "replay with the recorded routes, or in fp32"
