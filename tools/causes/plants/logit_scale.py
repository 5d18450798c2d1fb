"""B multiplies its logits by one number."""

from __future__ import annotations

from collections.abc import Iterator

from base import Pair, Plant, Truth, log_uniform
from numpy.random import Generator


class LogitScale(Plant):
    name = cause = "logit_scale"
    stage = 6

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        factor = log_uniform(chance, 1.05, 1.4)
        scale = factor if chance.random() < 0.5 else 1 / factor
        pair.b.add(lambda key, row: scale * row)
        # Not rounded again.
        pair.b.run["head_output_dtype"] = "float32"
        yield Truth(self.cause, {"scale": scale})
