"""B's rows are off from one absolute position on."""

from __future__ import annotations

from collections.abc import Iterator

from base import Pair, Plant, Truth, body_error, mix
from numpy.random import Generator


class AttentionSplit(Plant):
    name = cause = "attention_split"
    stage = 9

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        positions = {key: row["position"] for key, row in pair.b.tokens().items()}
        ordered = sorted(positions.values())
        edge = ordered[int(len(ordered) * chance.uniform(0.25, 0.75))]
        size = body_error(chance)
        mix(pair, pair.b, {key: size for key, position in positions.items() if position >= edge})
        yield Truth(self.cause, {"position": edge})
