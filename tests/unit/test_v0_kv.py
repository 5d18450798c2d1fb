"""What follows V0's block tables, told steps as V0 tells them: versions follow from which step wrote which block."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tracekit.record.capture import Weights
from tracekit.record.engines.v0.kv import BlockTables, cache_of

BLOCK = 16


def _group(
    name: str, table: list[int], *, length: int, computed: int | None = None, chunk: int = 0, cached: int = 0
) -> SimpleNamespace:
    """A request of a step: a prompt where `computed` says how much of it was computed before, else a decode."""
    data = SimpleNamespace(get_len=lambda: length, get_num_computed_tokens=lambda: computed or 0)
    return SimpleNamespace(
        request_id=name,
        seq_data={7: data},
        block_tables={7: table},
        is_prompt=computed is not None,
        token_chunk_size=chunk or length,
        computed_block_nums=table[:cached],
    )


def _step(tables: BlockTables, version: int, *groups: SimpleNamespace, **more: Any) -> list[int]:
    """Tells a step; returns the oldest weights behind each of its requests."""
    message = {"finished_requests_ids": [], "blocks_to_swap_in": [], "blocks_to_swap_out": [], "blocks_to_copy": []}
    tables.follow(SimpleNamespace(seq_group_metadata_list=groups, **message | more), Weights(version, None, False))
    return [int(version) for version in tables.oldest([group.request_id for group in groups])]


def test_a_request_keeps_what_it_began_with_until_it_is_admitted_anew() -> None:
    tables = BlockTables(BLOCK, shares=False)
    assert _step(tables, 0, _group("a", [4, 5], length=20, computed=0)) == [0]
    assert _step(tables, 1, _group("a", [4, 5], length=21)) == [0]
    assert _step(tables, 2, _group("a", [4, 5, 6], length=33)) == [0]
    # Preempted: all of it is computed again.
    assert _step(tables, 3, _group("a", [9, 5, 4], length=34, computed=0)) == [3]
    assert _step(tables, 4, _group("a", [9, 5, 4], length=35)) == [3]


def test_cached_blocks_bring_their_age() -> None:
    tables = BlockTables(BLOCK, shares=True)
    _step(tables, 0, _group("a", [4, 5], length=20, computed=0))
    _step(tables, 1, _group("b", [4, 6], length=20, computed=0, cached=1), finished_requests_ids=["a"])
    assert _step(tables, 2, _group("b", [4, 6], length=21)) == [0]
    # Block 5 was handed out anew, 4 is still what it was.
    assert _step(tables, 2, _group("c", [5], length=9, computed=0)) == [2]
    assert _step(tables, 3, _group("d", [4], length=16, computed=0, cached=1)) == [0]


def test_chunks_within_what_was_cached_write_nothing_of_their_own() -> None:
    tables = BlockTables(BLOCK, shares=True)
    _step(tables, 0, _group("a", [1, 2, 3, 4], length=64, computed=0))
    long = [1, 2, 3, 4, 5, 6]
    assert _step(tables, 1, _group("b", long, length=90, computed=0, chunk=32, cached=4)) == [0]
    assert _step(tables, 1, _group("b", long, length=90, computed=32, chunk=32, cached=4)) == [0]
    assert _step(tables, 2, _group("b", long, length=90, computed=64, chunk=26, cached=4)) == [0]
    # What the chunks wrote when they got there: 5 and 6 are of version 2, 3 and 4 of 0 as ever.
    assert _step(tables, 3, _group("c", [5, 6, 9], length=40, computed=0, cached=2)) == [2]
    assert _step(tables, 3, _group("d", [3, 4, 8], length=40, computed=0, cached=2)) == [0]


@pytest.mark.parametrize(("other", "expected"), [(0, 0), (3, 3)])
def test_a_full_block_that_gives_way_to_another(other: int, expected: int) -> None:
    tables = BlockTables(BLOCK, shares=True)
    _step(tables, other, _group("other", [3], length=16, computed=0))
    assert _step(tables, 1, _group("a", [4], length=10, computed=0)) == [1]
    assert _step(tables, 2, _group("a", [4], length=15)) == [1]
    assert _step(tables, 3, _group("a", [3], length=16)) == [expected]
    assert _step(tables, 4, _group("a", [3, 8], length=17)) == [expected]


def test_swapped_blocks_are_the_same_where_nothing_is_shared() -> None:
    tables = BlockTables(BLOCK, shares=False)
    _step(tables, 0, _group("a", [4], length=10, computed=0))
    _step(tables, 1, _group("b", [5], length=10, computed=0), blocks_to_swap_out=[(4, 0)])
    assert _step(tables, 2, _group("a", [6], length=11), _group("b", [5], length=11), blocks_to_swap_in=[(0, 6)]) == [
        0,
        1,
    ]


def test_with_shared_blocks_nothing_is_known_after_a_swap() -> None:
    tables = BlockTables(BLOCK, shares=True)
    _step(tables, 0, _group("a", [4], length=10, computed=0))
    assert _step(tables, 1, _group("b", [5], length=10, computed=0), blocks_to_swap_out=[(4, 0)]) == [-1]
    assert _step(tables, 2, _group("c", [6], length=10, computed=0)) == [-1]


def test_what_came_before_the_recorder_is_unknown() -> None:
    tables = BlockTables(BLOCK, shares=True)
    assert _step(tables, 5, _group("old", [1, 2], length=20), _group("long", [3, 4], length=32, computed=16)) == [
        -1,
        -1,
    ]
    assert _step(tables, 6, _group("old", [1, 2], length=21)) == [-1]
    assert _step(tables, 6, _group("new", [1, 9], length=20, computed=0, cached=1)) == [-1]
    # Admitted anew, it is known.
    assert _step(tables, 7, _group("old", [6, 7], length=22, computed=0)) == [7]


def test_a_copied_block_is_as_old_as_its_source() -> None:
    tables = BlockTables(BLOCK, shares=True)
    _step(tables, 0, _group("a", [4], length=16, computed=0))
    _step(tables, 1, _group("b", [5], length=4, computed=0), blocks_to_copy=[(4, 6)])
    assert _step(tables, 1, _group("c", [6, 7], length=20, computed=0, cached=1)) == [0]


@pytest.mark.parametrize(("connector", "stages", "is_known"), [(None, 1, True), (object(), 1, False), (None, 2, False)])
def test_where_blocks_are_not_all_seen_nothing_is_known(connector: Any, stages: int, is_known: bool) -> None:
    config = SimpleNamespace(
        kv_transfer_config=connector,
        parallel_config=SimpleNamespace(pipeline_parallel_size=stages),
        cache_config=SimpleNamespace(block_size=BLOCK, enable_prefix_caching=None),
    )
    assert (cache_of(SimpleNamespace(vllm_config=config)) is not None) == is_known
