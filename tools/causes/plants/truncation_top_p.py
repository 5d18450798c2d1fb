"""A trainer does not apply top-p."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from arithmetic import Sampling
from base import Pair, Plant, Truth, train
from numpy.random import Generator
from side import without_truncation


class TruncationTopP(Plant):
    name = "truncation_top_p"
    cause = "truncation"
    stage = 4
    in_pairs = False

    def wants(self, request: Mapping[str, Any]) -> bool:
        sampling = Sampling.of(request)
        return sampling.top_p < 1 or not sampling.truncates

    def shows(self, request: Mapping[str, Any]) -> bool:
        return Sampling.of(request).truncates

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        train(pair)
        pair.b.process(without_truncation)
        yield Truth(self.cause)
