"""Both sides have a prefix cache; B's rows are off in requests that found a part of their prompt in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from base import Pair, Plant, Truth, body_error, mix
from numpy.random import Generator


class PrefixCacheFaulty(Plant):
    name = "prefix_cache_faulty"
    cause = "prefix_cache"
    stage = 9

    def shows(self, request: Mapping[str, Any]) -> bool:
        return (request.get("num_cached_tokens") or 0) > 0

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        hit = {name for name in pair.b.names if (pair.b.request_of(name).get("num_cached_tokens") or 0) > 0}
        size = body_error(chance)
        mix(pair, pair.b, {key: size for key in pair.b.token_keys() if key[0] in hit})
        yield Truth(self.cause)
