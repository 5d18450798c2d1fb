"""A's engine kept KV entries of older weights over updates; its rows are off the more the older they are."""

from __future__ import annotations

from collections.abc import Iterator

from base import Pair, Plant, Truth, body_error, mix
from numpy.random import Generator


class StaleKv(Plant):
    name = cause = "stale_kv"
    stage = 12
    alone_in_stage = True

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        rows = pair.a.tokens()
        every = int(chance.integers(8, 16))
        versions = {key: row["step_id"] // every for key, row in rows.items()}
        size, strength = body_error(chance), {}
        lags = {}
        for name in pair.a.names:
            keys = [(name, row["output_index"]) for row in pair.a.recording.tokens[name]]
            for key in keys:
                oldest = versions[keys[0]]
                lags[key] = versions[key] - oldest
                known = {"weight_version": versions[key]}
                pair.a.token[key] = {**pair.a.token.get(key, {}), **known, "kv_weight_version_min": oldest}
                pair.b.token[key] = {**pair.b.token.get(key, {}), **known, "kv_weight_version_min": versions[key]}
        for row in pair.a.steps:
            row["weight_version"] = row["step_id"] // every
        largest = max(lags.values())
        strength = {key: 1.5 * size * lag / largest for key, lag in lags.items() if lag}
        mix(pair, pair.a, strength)
        yield Truth(self.cause)
