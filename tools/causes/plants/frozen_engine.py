"""A trainer's weights move on, step by step, and those of the engine stay."""

from __future__ import annotations

from collections.abc import Iterator

from base import Pair, Plant, Truth, body_error, mix, train
from numpy.random import Generator


class FrozenEngine(Plant):
    name = cause = "frozen_engine"
    stage = 12
    alone_in_stage = True
    in_pairs = False

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        train(pair)
        num_steps = int(chance.integers(6, 13))
        size, strength = 1.5 * body_error(chance), {}
        for name in pair.b.names:
            step = int(chance.integers(num_steps))
            for row in pair.b.recording.tokens[name]:
                key = (name, row["output_index"])
                pair.b.token[key] = {**pair.b.token.get(key, {}), "trainer_step": step, "policy": "current"}
                strength[key] = size * step / (num_steps - 1)
        mix(pair, pair.b, strength)
        yield Truth(self.cause)
