"""Follows the KV cache of the V0 engine by the block tables that come with every step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from tracekit.record.capture import Ints, Weights
from tracekit.record.kv import UNKNOWN, KvVersions, Span


def cache_of(runner: Any) -> BlockTables | None:
    """Returns what follows a runner's KV cache; None where what is in the cache cannot be known."""
    config = runner.vllm_config
    # A connector brings KV that other engines wrote; each pipeline stage's batch has blocks of its own.
    if config.kv_transfer_config is not None or config.parallel_config.pipeline_parallel_size > 1:
        return None
    return BlockTables(config.cache_config.block_size, shares=bool(config.cache_config.enable_prefix_caching))


class BlockTables:
    """The weights behind a KV cache whose block tables V0 sends with every step.

    A request is given all blocks of its prompt when it is admitted, computes them chunk by chunk, and then goes on
    by one token a step. With prefix caching, a block that this token fills gives way to one of the same tokens that
    another request has filled before, and the request goes on with that one.

    Args:
        block_size: tokens a block.
        shares: requests share blocks: there is a prefix cache.
    """

    def __init__(self, block_size: int, *, shares: bool) -> None:
        self._block_size = block_size
        self._shares = shares
        self._kv = KvVersions([block_size], null_block=None)
        # Of each request: how many blocks it has, and the last of them.
        self._ends: dict[str, tuple[int, int]] = {}
        self._is_lost = False

    def follow(self, message: Any, weights: Weights) -> None:
        """Takes note of an ExecuteModelRequest, whose forward pass runs with these weights."""
        assert weights.version is not None
        for request_id in message.finished_requests_ids:
            self._kv.forget(request_id)
            self._ends.pop(request_id, None)
        if self._shares and (message.blocks_to_swap_in or message.blocks_to_swap_out):
            # What is swapped in may be written over blocks of others. Without sharing, a request keeps what it had.
            self._is_lost = True
        self._kv.begin(weights.version)
        for source, target in message.blocks_to_copy:
            self._kv.copy(source, target)
        for metadata in message.seq_group_metadata_list:
            ((sequence_id, data),) = metadata.seq_data.items()
            table = metadata.block_tables[sequence_id]
            if metadata.is_prompt:
                self._compute_prompt(metadata, data, table)
            else:
                self._decode(metadata.request_id, data.get_len() - 1, table)
            self._ends[metadata.request_id] = len(table), table[-1]
        self._kv.finish()

    def oldest(self, request_ids: Iterable[str]) -> Ints:
        """Returns the oldest weights behind the KV of each request; negative where that is not known."""
        oldest = self._kv.oldest(request_ids)
        return np.full_like(oldest, UNKNOWN) if self._is_lost else oldest

    def _compute_prompt(self, metadata: Any, data: Any, table: list[int]) -> None:
        request_id, num_computed = metadata.request_id, data.get_num_computed_tokens()
        end = min(num_computed + metadata.token_chunk_size, data.get_len())
        # A chunk that ends within what was cached computes its last token once more, into a block that is cached.
        first = max(num_computed, len(metadata.computed_block_nums or ()) * self._block_size)
        span = Span(first, max(0, end - first))
        if num_computed == 0:
            self._kv.admit(request_id, [table], span)
        elif request_id in self._ends:
            self._kv.compute(request_id, span)
        else:
            self._kv.extend(request_id, [table], span)

    def _decode(self, request_id: str, position: int, table: list[int]) -> None:
        num_blocks, last = self._ends.get(request_id, (0, None))
        if len(table) > num_blocks:
            self._kv.extend(request_id, [table[num_blocks:]], Span(position, 1))
        elif self._shares and table[-1] != last:
            self._kv.replace(request_id, [table])
