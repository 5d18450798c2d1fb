"""B verifies drafts of several tokens at once, and its rows are off after the first of each."""

from __future__ import annotations

from collections.abc import Iterator

from base import Pair, Plant, Truth, body_error, mix
from numpy.random import Generator


class SpeculativeDecoding(Plant):
    name = cause = "speculative_decoding"
    stage = 9

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        size, strength = body_error(chance), {}
        for name in pair.b.names:
            draft = length = 0
            for row in pair.b.recording.tokens[name]:
                key = (name, row["output_index"])
                if draft >= length:
                    draft, length = 0, int(chance.integers(1, 5))
                pair.b.token[key] = {**pair.b.token.get(key, {}), "draft_index": draft}
                if draft > 0:
                    strength[key] = size
                draft += 1
        mix(pair, pair.b, strength)
        yield Truth(self.cause)
