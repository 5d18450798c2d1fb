"""B's softmax takes in entries that pad the vocabulary, all with one logit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from base import Pair, Plant, Truth, log_uniform
from numpy.random import Generator


class PaddedVocabulary(Plant):
    name = cause = "padded_vocabulary"
    stage = 6

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        num = int(chance.choice([64, 128, 512, 896]))
        totals = [row["logsumexp"] for row in pair.b.tokens().values()]
        # Together they have this share of the mass where logits are low, and next to none elsewhere.
        low = float(np.quantile(totals, 0.05))
        logit = low + float(np.log(log_uniform(chance, 0.05, 0.5) / num))
        pair.b.add(lambda key, row: np.concatenate([row, np.full(num, logit)]))
        yield Truth(self.cause)
