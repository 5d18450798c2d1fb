"""B's rotary embeddings are scaled as for longer contexts, so that it is off the more the later a position."""

from __future__ import annotations

from collections.abc import Iterator

from base import Pair, Plant, Truth, mix
from numpy.random import Generator


class ContextGrowth(Plant):
    name = cause = "context_growth"
    stage = 9

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        size = chance.uniform(0.6, 1.0)
        mix(pair, pair.b, dict.fromkeys(pair.b.token_keys(), size), other="rotated")
        yield Truth(self.cause)
