"""A's engine has other weights than B, all along, though both say the same version."""

from __future__ import annotations

from collections.abc import Iterator

from base import Pair, Plant, Truth, mix
from numpy.random import Generator


class StaleEngine(Plant):
    name = cause = "stale_engine"
    stage = 12
    alone_in_stage = True

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        size = chance.uniform(0.8, 1.5)
        mix(pair, pair.b, dict.fromkeys(pair.b.token_keys(), size))
        yield Truth(self.cause)
