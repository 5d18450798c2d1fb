"""B preempted some requests; their rows are off after they were resumed."""

from __future__ import annotations

from collections.abc import Iterator

from base import Pair, Plant, Truth, body_error, mix
from numpy.random import Generator


class Preemption(Plant):
    name = cause = "preemption"
    stage = 9

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        size, strength = body_error(chance), {}
        tokens = pair.b.tokens()
        for name in pair.b.names:
            if chance.random() > 0.4:
                continue
            rows = pair.b.recording.tokens[name]
            place = int(chance.integers(2, max(3, len(rows) // 2)))
            pair.b.outcome[name] = {"num_preemptions": 1}
            step = tokens[name, place]["step_id"]
            request_id = pair.b.request_of(name)["request_id"]
            pair.b.events.append({"time_ns": 1, "kind": "preempted", "request_id": request_id, "step_id": step})
            strength |= {(name, row["output_index"]): size for row in rows[place:]}
        mix(pair, pair.b, strength)
        yield Truth(self.cause)
