"""B's rows are off in requests whose prompt it read in two steps; A reads each in one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from base import Pair, Plant, Truth, body_error, mix
from numpy.random import Generator
from side import Side


class ChunkedPrefill(Plant):
    name = cause = "chunked_prefill"
    stage = 9

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        # Of prompts of any length, so that it is not the length that tells them apart.
        cut = {name for name in pair.b.names if chance.random() < 0.4}
        pair.a.run["chunked_prefill"] = False
        pair.b.run["chunked_prefill"] = True
        _cut(pair.b, cut)
        size = body_error(chance)
        mix(pair, pair.b, {key: size for key in pair.b.token_keys() if key[0] in cut})
        yield Truth(self.cause)


def _cut(side: Side, names: set[str]) -> None:
    """Puts a step that reads half of a prompt before the one that read it all."""
    wanted = {side.request_of(name)["request_id"] for name in names}
    # Room for a step before each.
    steps, begun = [], set()
    for step in sorted(side.steps, key=lambda row: int(row["step_id"])):
        new = [request for request in step["request_ids"] if request in wanted and request not in begun]
        begun.update(new)
        halves = {request: step["scheduled_tokens"][step["request_ids"].index(request)] // 2 for request in new}
        if halves:
            steps.append(_first_half(step, halves))
        steps.append(_second_half(step, halves))
    side.steps = steps
    for key, row in side.tokens().items():
        side.token[key] = {**side.token.get(key, {}), "step_id": 2 * row["step_id"] + 1}


def _first_half(step: Mapping[str, Any], halves: Mapping[str, int]) -> dict[str, Any]:
    num = sum(halves.values())
    computed = [step["computed_tokens"][step["request_ids"].index(request)] for request in halves]
    lists = {"request_ids": list(halves), "scheduled_tokens": list(halves.values()), "computed_tokens": computed}
    counts = {
        "num_requests": len(halves),
        "num_scheduled_tokens": num,
        "num_prefill_tokens": num,
        "num_decode_tokens": 0,
    }
    return {**step, **lists, **counts, "step_id": 2 * step["step_id"]}


def _second_half(step: Mapping[str, Any], halves: Mapping[str, int]) -> dict[str, Any]:
    num = sum(halves.values())
    rows = zip(step["request_ids"], step["scheduled_tokens"], step["computed_tokens"], strict=True)
    split = [(size - halves.get(request, 0), done + halves.get(request, 0)) for request, size, done in rows]
    lists = {"scheduled_tokens": [size for size, _ in split], "computed_tokens": [done for _, done in split]}
    counts = {name: step[name] - num for name in ("num_scheduled_tokens", "num_prefill_tokens")}
    return {**step, **lists, **counts, "step_id": 2 * step["step_id"] + 1}
