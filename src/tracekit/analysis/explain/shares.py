"""How much of a statistic each contribution carries: shares that add up to one with what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from tracekit.analysis.explain.tokens import Floats

_NEAR_ZERO = 1e-4


def _k3_slope(d: Floats) -> Floats:
    """Returns (exp(d) - 1 - d) / d, by its series near 0."""
    near = np.abs(d) < _NEAR_ZERO
    safe = np.where(near, 1.0, np.minimum(d, 700))
    return np.where(near, d / 2 + d * d / 6, (np.expm1(safe) - safe) / safe)


# f(d) / d of each statistic f: k2 is d² / 2.
STATISTICS: Mapping[str, Callable[[Floats], Floats]] = MappingProxyType(
    {"k2": lambda d: d / 2, "k3": _k3_slope, "abs": lambda d: np.sign(d)}
)


def share(delta: Floats, d: Floats) -> dict[str, float]:
    """Returns the share of a contribution in each statistic of d.

    The Aumann-Shapley share on the straight path from 0 to d: sum(delta f(d) / d) / sum(f(d)). For k2 it is the
    covariance share E[delta d] / E[d²]. Negative where a contribution cancels others.

    Args:
        delta: float64 [N] in nat.
        d: float64 [N] in nat, finite.

    Returns:
        By the name of the statistic; 0 where d is 0 throughout.
    """
    found = {}
    for name, slope in STATISTICS.items():
        slopes = slope(d)
        total = float(np.sum(slopes * d))
        found[name] = float(np.sum(slopes * delta)) / total if total > 0 else 0.0
    return found
