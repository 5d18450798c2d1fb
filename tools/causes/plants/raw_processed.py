"""An engine reports raw logprobs, a trainer computes processed ones: temperature and truncation at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from arithmetic import Sampling
from base import Pair, Plant, Truth
from numpy.random import Generator
from side import Client, without_truncation


class RawProcessed(Plant):
    name = "raw_processed"
    cause = "temperature"
    also = ("logprob_semantics", "truncation")
    stage = 2
    in_pairs = False

    def wants(self, request: Mapping[str, Any]) -> bool:
        sampling = Sampling.of(request)
        return sampling.temperature == 0.7 and not sampling.penalises

    def shows(self, request: Mapping[str, Any]) -> bool:
        return Sampling.of(request).truncates

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        pair.b.client = Client("trainer", "processed")
        pair.role = "trainer"
        pair.a.client = Client("reported", "processed")
        pair.a.reprocess = without_truncation
        yield Truth("truncation")
        pair.a.reprocess = None
        pair.a.client = Client("reported", "raw")
        yield Truth("temperature", {"temperature": 0.7})
