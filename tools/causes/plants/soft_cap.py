"""B caps its logits softly: z becomes c tanh(z / c)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from base import Pair, Plant, Truth, log_uniform
from numpy.random import Generator


class SoftCap(Plant):
    name = cause = "soft_cap"
    stage = 6

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        cap = log_uniform(chance, 20, 80)
        pair.b.add(lambda key, row: cap * np.tanh(row / cap))
        # Not rounded again.
        pair.b.run["head_output_dtype"] = "float32"
        yield Truth(self.cause, {"cap": cap})
