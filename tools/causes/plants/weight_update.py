"""A's weights change in the middle of requests, its KV cache is cleared; B scores all under the old ones."""

from __future__ import annotations

from collections.abc import Iterator

from base import Pair, Plant, Truth, body_error, mix
from numpy.random import Generator


class WeightUpdate(Plant):
    name = cause = "weight_update"
    stage = 12
    alone_in_stage = True

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        steps = {key: row["step_id"] for key, row in pair.a.tokens().items()}
        ordered = sorted(steps.values())
        update = ordered[int(len(ordered) * chance.uniform(0.3, 0.7))]
        for key, step in steps.items():
            version = int(step >= update)
            known = {"weight_version": version, "kv_weight_version_min": version}
            pair.a.token[key] = {**pair.a.token.get(key, {}), **known}
        for row in pair.a.steps:
            row["weight_version"] = int(row["step_id"] >= update)
        pair.a.events.append({"time_ns": 1, "kind": "weights_updated", "step_id": update})
        size = body_error(chance)
        mix(pair, pair.a, {key: size for key, step in steps.items() if step >= update})
        yield Truth(self.cause, {"step": update})
