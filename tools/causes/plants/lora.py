"""Rows are off in the requests that have an adapter."""

from __future__ import annotations

from collections.abc import Iterator

from base import Pair, Plant, Truth, body_error, mix
from numpy.random import Generator


class Lora(Plant):
    name = cause = "lora"
    stage = 10

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        adapted = {name for name in pair.a.names if chance.random() < 0.4}
        for name in adapted:
            for side in (pair.a, pair.b):
                side.request[name] = {**side.request.get(name, {}), "lora": "writer"}
        size = body_error(chance)
        mix(pair, pair.b, {key: size for key in pair.b.token_keys() if key[0] in adapted})
        yield Truth(self.cause)
