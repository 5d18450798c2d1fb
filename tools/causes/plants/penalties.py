"""B applies neither penalties nor a bias."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from arithmetic import Sampling
from base import Pair, Plant, Truth
from numpy.random import Generator
from side import without_penalties


class Penalties(Plant):
    name = cause = "penalties"
    stage = 5

    def shows(self, request: Mapping[str, Any]) -> bool:
        return Sampling.of(request).penalises

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        pair.b.process(without_penalties)
        yield Truth(self.cause)
