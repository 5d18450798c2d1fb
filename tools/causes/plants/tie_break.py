"""Greedy requests take another of the tokens whose logits are exactly equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from arithmetic import Sampling
from base import Pair, Plant, Truth
from forks import end_with
from numpy.random import Generator


class TieBreak(Plant):
    name = cause = "tie_break"
    stage = 13
    base = "self"
    is_fork = True
    in_pairs = False

    def wants(self, request: Mapping[str, Any]) -> bool:
        return Sampling.of(request).temperature in (0.0, 1.0)

    def shows(self, request: Mapping[str, Any]) -> bool:
        return Sampling.of(request).is_greedy

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        for name in pair.b.names:
            if not Sampling.of(pair.b.request_of(name)).is_greedy:
                continue
            for row in pair.b.recording.tokens[name]:
                if row["top1_margin"] == 0:
                    other = next(token for token in row["top_token_ids"] if token != row["token_id"])
                    end_with(pair.b, name, row["output_index"], other)
                    break
        yield Truth(self.cause)
