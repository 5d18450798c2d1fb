"""B's weights are rounded to 8-bit integers: a real engine's rows under such a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from base import Pair, Plant, Truth, mix
from numpy.random import Generator


class Quantisation(Plant):
    name = cause = "quantisation"
    stage = 11
    num_requests = 30

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        pair.b.run["quantization"] = "int8"
        mix(pair, pair.b, dict.fromkeys(pair.b.token_keys(), chance.uniform(0.7, 1.0)), other="quantised")
        yield Truth(self.cause)
