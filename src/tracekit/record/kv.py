"""Keeps, for each block of the KV cache, which weights wrote it; from that, the oldest weights behind a token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

UNKNOWN = -1


class Span(NamedTuple):
    """The positions of a request that one step computes.

    Attributes:
        first: the first of them: so many positions have KV already.
        length: how many.
        num_drafts: how many at the end are drafts, and may be rejected and computed once more.
    """

    first: int
    length: int
    num_drafts: int = 0


@dataclass
class _Request:
    """A request's place in the cache.

    Attributes:
        num_blocks: blocks it has in each group.
        oldest: oldest weights behind its KV.
    """

    num_blocks: list[int]
    oldest: int = UNKNOWN


class KvVersions:
    """The weight versions of the blocks of a paged KV cache.

    A block has the version of the weights at its first write since it was handed out; later writes are by newer
    weights. Only the request that a block was handed out to writes into it, so the oldest weights behind a
    request's KV are known when it is admitted: those of the cached blocks it is given, and those it starts with.
    They stay until it is admitted anew, after a preemption, or until its own blocks are given up for others.

    Each step: `begin`; then `copy`, `admit`, `extend` and `replace` as the engine does; `compute` for the requests
    that are left in `unsettled`; and `finish`.

    Args:
        block_sizes: tokens a block of each group of layers; all groups share one set of block ids.
        null_block: the block that stands for none; None where every id is a block.

    Attributes:
        unsettled: requests with blocks that were handed out, or written by drafts only; by group.
    """

    def __init__(self, block_sizes: Sequence[int], null_block: int | None = 0) -> None:
        self._block_sizes = list(block_sizes)
        self._null_block = null_block
        self._versions: dict[int, int] = {}
        self._requests: dict[str, _Request] = {}
        self._to_settle: list[tuple[_Request, list[int]]] = []
        self._version = UNKNOWN
        self.unsettled: dict[str, list[tuple[int, int]]] = {}

    def begin(self, version: int) -> None:
        """Starts a step, whose forward pass runs with these weights."""
        self._version = version
        self._to_settle.clear()

    def copy(self, source: int, target: int) -> None:
        """One block was copied into another, before the forward pass."""
        self._versions[target] = self._versions.get(source, UNKNOWN)

    def admit(self, request_id: str, tables: Sequence[Sequence[int]], span: Span) -> None:
        """A request enters the cache, new or again.

        Args:
            request_id: the request.
            tables: its blocks in each group, from position 0. Those that begin before `span` are cached ones.
            span: what this step computes of it.
        """
        request = self._requests[request_id] = _Request([0] * len(self._block_sizes))
        self.unsettled.pop(request_id, None)
        cached: list[int] = []
        fresh: list[Sequence[int]] = []
        for group, (size, table) in enumerate(zip(self._block_sizes, tables, strict=True)):
            num_cached = min(-(-span.first // size), len(table))
            cached += [block for block in table[:num_cached] if block != self._null_block]
            fresh.append(table[num_cached:])
            request.num_blocks[group] = num_cached
        self._hand_out(request_id, request, fresh, span)
        self._to_settle.append((request, cached))

    def extend(self, request_id: str, tables: Sequence[Sequence[int]], span: Span) -> None:
        """A request is handed out blocks beyond those it has."""
        request = self._requests.get(request_id)
        if request is not None:
            self._hand_out(request_id, request, tables, span)
            return
        # It came before this bookkeeping did: which positions these blocks are for is not known.
        for table in tables:
            self._versions.update(dict.fromkeys(table, UNKNOWN))

    def replace(self, request_id: str, tables: Sequence[Sequence[int]]) -> None:
        """Blocks of a request gave way to others of the same tokens, which another request wrote.

        Args:
            request_id: the request.
            tables: all its blocks in each group, as they are now.
        """
        request = self._requests.get(request_id)
        if request is not None:
            self._to_settle.append((request, [block for table in tables for block in table]))

    def compute(self, request_id: str, span: Span) -> None:
        """A step goes on with a request of `unsettled`."""
        for start, block in self.unsettled.pop(request_id, []):
            # What lies before is written for good: its drafts were accepted.
            if start >= span.first:
                self._write(request_id, start, block, span)

    def finish(self) -> None:
        """Ends what is to be told of a step: all its writes are known, also into blocks that it shares at once."""
        get = self._versions.get
        for request, blocks in self._to_settle:
            request.oldest = min((get(block, UNKNOWN) for block in blocks), default=self._version)

    def forget(self, request_id: str) -> None:
        """A request has left."""
        self._requests.pop(request_id, None)
        self.unsettled.pop(request_id, None)

    def oldest(self, request_ids: Iterable[str]) -> npt.NDArray[np.int32]:
        """Returns the oldest weights behind the KV of each request; `UNKNOWN` where that is not known."""
        requests = map(self._requests.get, request_ids)
        return np.array([UNKNOWN if request is None else request.oldest for request in requests], np.int32)

    def _hand_out(self, request_id: str, request: _Request, tables: Sequence[Sequence[int]], span: Span) -> None:
        for group, (size, table) in enumerate(zip(self._block_sizes, tables, strict=True)):
            start = size * request.num_blocks[group]
            request.num_blocks[group] += len(table)
            for i, block in enumerate(table):
                if block != self._null_block:
                    self._write(request_id, start + size * i, block, span)

    def _write(self, request_id: str, start: int, block: int, span: Span) -> None:
        self._versions[block] = self._version
        # Not yet reached, or by drafts only: the first write that counts is still to come.
        if start >= span.first + span.length - span.num_drafts:
            self.unsettled.setdefault(request_id, []).append((start, block))
