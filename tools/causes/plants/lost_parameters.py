"""A's sampler loses the temperature of tokens that drafts proposed, and draws them with another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from arithmetic import Sampling, processed_columns
from base import Pair, Plant, Truth, log_uniform
from numpy.random import Generator


class LostParameters(Plant):
    name = "lost_parameters"
    cause = "sampler"
    stage = 3
    alone_in_stage = True

    def wants(self, request: Mapping[str, Any]) -> bool:
        sampling = Sampling.of(request)
        return not (sampling.is_greedy or sampling.truncates or sampling.penalises)

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        share = chance.uniform(0.05, 0.5)
        for key, row in pair.a.tokens().items():
            if chance.random() >= share:
                continue
            asked = Sampling(temperature=log_uniform(chance, 0.05, 20))
            logits = pair.a.recording.logits(key)
            lost = processed_columns(logits, row["token_id"], asked, [], [])["processed_logprob"]
            pair.a.token[key] = {**pair.a.token.get(key, {}), "draft_index": 0, "processed_logprob": lost}
        yield Truth(self.cause)
