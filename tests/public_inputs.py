"""The numbers that other projects' code and the SQL library both compute metrics of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = list[npt.NDArray[np.float32]]
Shape = Callable[[np.random.Generator, int], tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]


@dataclass(frozen=True)
class Case:
    """Logprobs of both sides of each sequence, and one advantage a sequence, never 0."""

    a: Rows
    b: Rows
    advantages: npt.NDArray[np.float32]

    def digest(self) -> str:
        """Returns a hash of all its numbers."""
        parts = (
            np.concatenate([*self.a, *self.b, self.advantages]),
            np.array([len(row) for row in self.a], np.float32),
        )
        return hashlib.sha256(b"".join(np.asarray(part, "<f4").tobytes() for part in parts)).hexdigest()


# Logprobs of A, and log ratios.
_SHAPES: dict[str, Shape] = {
    "ordinary": lambda rng, n: (-rng.exponential(1.0, n), rng.normal(0, 0.05, n)),
    "wide": lambda rng, n: (-rng.exponential(3.0, n) - 6, rng.normal(0, 1.5, n)),
    "tiny": lambda rng, n: (-rng.exponential(1.0, n), rng.normal(0, 1e-7, n)),
    "equal": lambda rng, n: (-rng.exponential(1.0, n), np.zeros(n)),
    "fifty": lambda rng, n: (-rng.uniform(50, 60, n), rng.choice([-50.0, 50.0], n)),
    "excluded": lambda rng, n: (-rng.exponential(1.0, n), np.where(rng.random(n) < 0.1, -np.inf, 0.01)),
    "near a bound": lambda rng, n: (-rng.exponential(1.0, n) - 3, rng.choice(_NEAR, n) + rng.normal(0, 1e-3, n)),
    "one token": lambda rng, n: (-rng.exponential(1.0, n), rng.normal(0, 0.3, n)),
}
# Where metrics clip, truncate or mask.
_NEAR = np.log([0.5, 0.8, 1.0, 1.2, 1.28, 2, 3, 5])


def cases() -> dict[str, Case]:
    """Returns the cases by name; always the same numbers."""
    return {
        name: _case(shape, seed, 1 if name == "one token" else 24) for seed, (name, shape) in enumerate(_SHAPES.items())
    }


def _case(shape: Shape, seed: int, num: int) -> Case:
    rng = np.random.default_rng([seed, 2026])
    lengths = [1] if num == 1 else [1, 2, *rng.integers(3, 60, num - 2)]
    sides = [shape(rng, int(length)) for length in lengths]
    advantages = rng.choice([-1.0, 1.0], num) * rng.uniform(0.1, 2, num)
    return Case(
        [logprob.astype(np.float32) for logprob, _ in sides],
        [(logprob.astype(np.float32) + d).astype(np.float32) for logprob, d in sides],
        advantages.astype(np.float32),
    )
