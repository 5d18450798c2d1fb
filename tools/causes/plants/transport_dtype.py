"""Logprobs are rounded to bf16 on their way to one side's client."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from base import Pair, Plant, Truth, report
from numpy.random import Generator


class TransportDtype(Plant):
    name = cause = "transport_dtype"
    stage = 0
    # Far below the noise of a repeat; a replay in the recorded batches gives the same bits on the same machine.
    base = "self"
    in_pairs = False

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        report(pair.a)
        report(pair.b)
        side = pair.a if chance.random() < 0.5 else pair.b
        side.client = replace(side.client, is_bf16=True)
        yield Truth(self.cause)
