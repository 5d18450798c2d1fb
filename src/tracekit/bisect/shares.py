"""Shares of a difference in k2, k3 and abs: Aumann-Shapley on the straight path.

With d the difference of a token and delta the part of it that a cause makes, the cause's share in a statistic f is
sum(delta * f(d) / d) / sum(f(d)). For k2 that is sum(delta * d) / sum(d^2). Shares of parts that add up to d add up to
one; a negative share is cancellation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_STATISTICS: Mapping[str, Callable[[Floats], Floats]] = {
    "k2": lambda d: d * d / 2,
    "k3": lambda d: np.expm1(d) - d,
    "abs": np.abs,
}


@dataclass(frozen=True)
class Amounts:
    """One number for each of the three statistics: a mean over tokens in nat, or a share of it."""

    k2: float
    k3: float
    abs: float

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(self.k2 + other.k2, self.k3 + other.k3, self.abs + other.abs)

    def __sub__(self, other: Amounts) -> Amounts:
        return self + other * -1

    def __mul__(self, factor: float) -> Amounts:
        return Amounts(self.k2 * factor, self.k3 * factor, self.abs * factor)


NOTHING = Amounts(0.0, 0.0, 0.0)


def means(d: Floats) -> Amounts:
    """Returns the statistics of differences, as means over tokens."""
    if not len(d):
        return NOTHING
    return Amounts(*(float(np.mean(statistic(d))) for statistic in _STATISTICS.values()))


def share(delta: Floats, d: Floats) -> Amounts:
    """Returns what part of the statistics of d is that of delta; nothing where d is zero throughout."""
    return Amounts(*(_share(statistic, delta, d) for statistic in _STATISTICS.values()))


def _share(statistic: Callable[[Floats], Floats], delta: Floats, d: Floats) -> float:
    values = statistic(d)
    total = float(np.sum(values))
    if not total:
        return 0.0
    slope = np.divide(values, d, out=np.zeros_like(d), where=d != 0)
    return float(np.sum(delta * slope)) / total
