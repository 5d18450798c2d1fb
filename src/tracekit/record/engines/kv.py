"""Follows the KV cache of the V1 engine by its scheduler's messages to either runner."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tracekit.record.capture import Ints, Weights
from tracekit.record.kv import KvVersions, Span


def cache_of(runner: Any) -> ScheduledCache | None:
    """Returns what follows a runner's KV cache; None where what is in the cache cannot be known."""
    config = runner.vllm_config
    parallel = config.parallel_config
    is_sharded = any(getattr(parallel, f"{kind}_context_parallel_size", 1) > 1 for kind in ("decode", "prefill"))
    # A connector brings KV that other engines wrote.
    if config.kv_transfer_config is not None or is_sharded:
        return None
    return ScheduledCache([group.kv_cache_spec.block_size for group in runner.kv_cache_config.kv_cache_groups])


class ScheduledCache:
    """The weights behind a KV cache that the V1 engine's scheduler hands out.

    Args:
        block_sizes: tokens a block of each group of layers.
    """

    def __init__(self, block_sizes: list[int]) -> None:
        self._kv = KvVersions(block_sizes)

    def follow(self, message: Any, weights: Weights) -> None:
        """Takes note of one message, whose forward pass runs with these weights."""
        _follow(self._kv, message, weights)

    def oldest(self, request_ids: Iterable[str]) -> Ints:
        """Returns the oldest weights behind the KV of each request; negative where that is not known."""
        return self._kv.oldest(request_ids)


def _follow(kv: KvVersions, message: Any, weights: Weights) -> None:
    """Tells the bookkeeping what a message says.

    With speculative decoding scheduled ahead of time, the message takes all drafts for accepted; a block whose first
    entries were rejected in the very step before an update then counts as older than it is.
    """
    assert weights.version is not None
    for request_id in message.finished_req_ids:
        kv.forget(request_id)
    kv.begin(weights.version)
    for copy in getattr(message, "kv_cache_block_copies", None) or ():
        kv.copy(copy.src_block_id, copy.dst_block_id)
    counts, drafts = message.num_scheduled_tokens, message.scheduled_spec_decode_tokens

    def span(request_id: str, first: int) -> Span:
        return Span(first, counts[request_id], len(drafts.get(request_id, ())))

    for data in message.scheduled_new_reqs:
        kv.admit(data.req_id, data.block_ids, span(data.req_id, data.num_computed_tokens))
    cached = message.scheduled_cached_reqs
    for i, blocks in enumerate(cached.new_block_ids):
        if blocks is not None:
            request_id = cached.req_ids[i]
            hand_out = kv.admit if request_id in cached.resumed_req_ids else kv.extend
            hand_out(request_id, blocks, span(request_id, cached.num_computed_tokens[i]))
    if kv.unsettled:
        for request_id, first in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if request_id in kv.unsettled:
                kv.compute(request_id, span(request_id, first))
    kv.finish()
