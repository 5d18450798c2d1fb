"""B draws with other random numbers from the same distributions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from arithmetic import Sampling
from base import Pair, Plant, Truth
from forks import end_with
from numpy.random import Generator


class RandomNumbers(Plant):
    name = cause = "random_numbers"
    stage = 13
    is_fork = True
    in_pairs = False

    def wants(self, request: Mapping[str, Any]) -> bool:
        sampling = Sampling.of(request)
        return not (sampling.is_greedy or sampling.truncates or sampling.penalises)

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        for name in pair.b.names:
            temperature = Sampling.of(pair.b.request_of(name)).temperature
            for row in pair.b.recording.tokens[name]:
                logits = pair.b.recording.logits((name, row["output_index"])) / temperature
                # The largest of logits plus Gumbel noise is a draw from their softmax.
                drawn = int(np.argmax(logits + chance.gumbel(size=len(logits))))
                if drawn != row["token_id"]:
                    end_with(pair.b, name, row["output_index"], drawn)
                    break
        yield Truth(self.cause)
