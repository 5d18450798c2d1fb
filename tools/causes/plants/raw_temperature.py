"""One side reports raw logprobs, the other processed ones; the temperature alone makes the difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from arithmetic import Sampling
from base import Pair, Plant, Truth
from numpy.random import Generator


class RawTemperature(Plant):
    name = "raw_temperature"
    cause = "temperature"
    also = ("logprob_semantics",)
    stage = 2

    def wants(self, request: Mapping[str, Any]) -> bool:
        sampling = Sampling.of(request)
        return not (sampling.truncates or sampling.penalises)

    def shows(self, request: Mapping[str, Any]) -> bool:
        return Sampling.of(request).temperature == 0.7

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        raw, processed = (pair.a, pair.b) if chance.random() < 0.5 else (pair.b, pair.a)
        raw.client = replace(raw.client, kind="reported", value="raw")
        processed.client = replace(processed.client, kind="reported")
        yield Truth(self.cause, {"temperature": 0.7})
