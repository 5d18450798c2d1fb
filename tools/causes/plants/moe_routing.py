"""B sends some positions to other experts; what they predict is far off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from base import Pair, Plant, Truth, mix
from numpy.random import Generator


class MoeRouting(Plant):
    name = cause = "moe_routing"
    stage = 9

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        share, strength = chance.uniform(0.05, 0.2), {}
        size = chance.uniform(0.4, 0.8)
        for name in pair.b.names:
            for row in pair.b.recording.tokens[name]:
                experts = chance.integers(0, 16, (4, 2))
                others = experts.copy()
                if chance.random() < share:
                    layer = int(chance.integers(4))
                    others[layer] = (experts[layer] + 1) % 16
                    strength[name, row["output_index"]] = size
                # The row that predicts a token is made at the position before it.
                _route(pair.a, name, row["position"] - 1, experts)
                _route(pair.b, name, row["position"] - 1, others)
        mix(pair, pair.b, strength)
        yield Truth(self.cause)


def _route(side: Any, name: str, position: int, experts: Any) -> None:
    request_id = side.request_of(name)["request_id"]
    side.routes.append({"request_id": request_id, "position": position, "experts": experts.tolist()})
