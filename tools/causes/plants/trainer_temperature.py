"""A trainer divides logits by another temperature than the engine sampled with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from arithmetic import Sampling
from base import Pair, Plant, Truth, log_uniform, train
from numpy.random import Generator


class TrainerTemperature(Plant):
    name = "trainer_temperature"
    cause = "temperature"
    stage = 3
    in_pairs = False

    def wants(self, request: Mapping[str, Any]) -> bool:
        sampling = Sampling.of(request)
        return not (sampling.is_greedy or sampling.truncates or sampling.penalises)

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        train(pair)
        factor = log_uniform(chance, 1.1, 1.8)
        temperature = factor if chance.random() < 0.5 else 1 / factor
        pair.b.process(lambda sampling: replace(sampling, temperature=temperature))
        yield Truth(self.cause, {"temperature": temperature})
