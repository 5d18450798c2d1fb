"""When the answer is settled, and what counts as taking A nearer to B."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tracekit.bisect.scores import Scores

# A replay that leaves no more of the difference than this has reached B.
NEARLY_NOTHING = 0.01
# Noise above this share of the difference cannot tell A from B: from each to the other it would be within noise twice.
_CLEAR_NOISE = 0.25
# What a factor has to take away, as a share of the difference, and in standard errors over requests.
_LEAST_GAIN = 0.01
_LEAST_ERRORS = 2.0


@dataclass(frozen=True)
class Rules:
    """The bounds of one comparison, in k2 summed over tokens and divided by two, as means over tokens.

    Attributes:
        difference: of A and B.
        noise: of repeats, or of the baseline's replay against A.
    """

    difference: float
    noise: float

    @property
    def noise_is_clear(self) -> bool:
        """Whether noise is so much less than the difference that it can be told from it."""
        return self.noise <= _CLEAR_NOISE * self.difference

    @property
    def enough(self) -> float:
        """What may be left between a replay and B: the noise, or nearly nothing."""
        nearly = NEARLY_NOTHING * self.difference
        return max(nearly, self.noise) if self.noise_is_clear else nearly

    def reaches(self, left: float) -> bool:
        """Whether a replay whose distance to B this is has reached it."""
        return left <= self.enough

    def is_nearer(self, scores: Scores, before: str, after: str) -> bool:
        """Whether one replay is nearer to B than another, by more than chance among requests would make it."""
        gains = scores.difference(before, "b") ** 2 / 2 - scores.difference(after, "b") ** 2 / 2
        if float(np.mean(gains)) <= _LEAST_GAIN * self.difference:
            return False
        _, inverse = np.unique(scores.requests(), return_inverse=True)
        of_requests = np.bincount(inverse, weights=gains)
        if len(of_requests) < 2:
            return True
        error = float(np.std(of_requests, ddof=1)) * math.sqrt(len(of_requests))
        return float(np.sum(of_requests)) > _LEAST_ERRORS * error
