"""B's last projection gives out float32 instead of bf16."""

from __future__ import annotations

from collections.abc import Iterator

from base import Pair, Plant, Truth
from heads import Projection
from numpy.random import Generator


class HeadOutputRounding(Plant):
    name = cause = "head_output_rounding"
    stage = 7
    # B's body is A's, as when recorded hidden states are replayed: a repeat's noise is as large as the rounding.
    base = "self"
    in_pairs = False

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        pair.b.add(Projection(pair.b, pair.base.head))
        pair.b.run |= {"head_output_dtype": "float32"}
        yield Truth(self.cause)
