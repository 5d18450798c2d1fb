"""A trainer takes each token's logprob from the row before or after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from base import Pair, Plant, Truth, train
from numpy.random import Generator


class MisalignedRows(Plant):
    name = cause = "misaligned_rows"
    stage = 1
    in_pairs = False

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        train(pair)
        shift = int(chance.choice([-1, 1]))
        pair.b.client = replace(pair.b.client, shift=shift)
        yield Truth(self.cause)
