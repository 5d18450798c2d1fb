"""One side's client gets logprobs before top-k and min-p, the other those after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from arithmetic import Sampling
from base import Pair, Plant, Truth, report
from numpy.random import Generator
from side import without_truncation


class TruncationTopK(Plant):
    name = "truncation_top_k"
    cause = "truncation"
    stage = 4

    def wants(self, request: Mapping[str, Any]) -> bool:
        return Sampling.of(request).top_p == 1

    def shows(self, request: Mapping[str, Any]) -> bool:
        return Sampling.of(request).truncates

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        report(pair.a)
        report(pair.b)
        side = pair.a if chance.random() < 0.5 else pair.b
        side.process(without_truncation)
        yield Truth(self.cause)
