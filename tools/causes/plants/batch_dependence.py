"""A's rows are off in steps of so many requests, and of more."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from base import Pair, Plant, Truth, body_error, mix
from numpy.random import Generator


class BatchDependence(Plant):
    name = cause = "batch_dependence"
    stage = 8

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        sizes = {row["step_id"]: row["num_requests"] for row in pair.a.steps}
        tokens = {key: sizes[row["step_id"]] for key, row in pair.a.tokens().items()}
        # Both sides of the edge must have tokens enough to tell.
        shares = {edge: np.mean([num > edge for num in tokens.values()]) for edge in set(tokens.values())}
        fitting = sorted(edge for edge, share in shares.items() if 0.2 <= share <= 0.8)
        edge = int(chance.choice(fitting or [max(shares, key=lambda edge: -abs(shares[edge] - 0.5))]))
        size = body_error(chance)
        mix(pair, pair.a, {key: size for key, num in tokens.items() if num > edge})
        yield Truth(self.cause, {"edge": min(num for num in tokens.values() if num > edge)})
