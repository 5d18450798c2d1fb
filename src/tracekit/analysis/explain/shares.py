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


class Shares:
    """The shares of contributions in each statistic of d.

    The Aumann-Shapley share on the straight path from 0 to d: sum(delta f(d) / d) / sum(f(d)). For k2 it is the
    covariance share E[delta d] / E[d²]. Negative where a contribution cancels others.
    """

    def __init__(self, d: Floats) -> None:
        """Takes d, float64 [N] in nat, finite."""
        self._slopes = {name: slope(d) for name, slope in STATISTICS.items()}
        self._totals = {name: float(slopes @ d) for name, slopes in self._slopes.items()}

    def of(self, delta: Floats) -> dict[str, float]:
        """Returns the shares of a contribution, float64 [N] in nat, by statistic; 0 where d is 0 throughout."""
        return {
            name: float(slopes @ delta) / self._totals[name] if self._totals[name] > 0 else 0.0
            for name, slopes in self._slopes.items()
        }
