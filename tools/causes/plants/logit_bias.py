"""B does not add the logit bias."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from arithmetic import Sampling
from base import Pair, Plant, Truth
from numpy.random import Generator


class LogitBias(Plant):
    name = "logit_bias"
    cause = "penalties"
    stage = 5

    def wants(self, request: Mapping[str, Any]) -> bool:
        sampling = Sampling.of(request)
        return bool(sampling.logit_bias) or not sampling.penalises

    def shows(self, request: Mapping[str, Any]) -> bool:
        return bool(Sampling.of(request).logit_bias)

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        pair.b.process(lambda sampling: replace(sampling, logit_bias={}))
        yield Truth(self.cause)
