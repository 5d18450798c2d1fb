"""Versions of KV blocks against a simulation that keeps the version of every single KV entry."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from tracekit.record.kv import UNKNOWN, KvVersions, Span


@dataclass
class _Sequence:
    tokens: list[int]
    blocks: list[list[int]] = field(default_factory=list)
    num_computed: int = 0


class _Cache:
    """A paged KV cache with prefix caching, entry by entry, and the bookkeeping under test told beside it."""

    def __init__(self, block_sizes: tuple[int, ...], num_blocks: int, lookahead: int) -> None:
        self.block_sizes = block_sizes
        self.lookahead = lookahead
        self.free = list(range(1, num_blocks))
        # Per block: the weights behind each of its entries, for each slot.
        self.entries: dict[int, dict[int, int]] = {block: {} for block in range(num_blocks)}
        self.hashes: list[dict[tuple[int, ...], int]] = [{} for _ in block_sizes]
        self.owners: dict[int, int] = {}
        self.kv = KvVersions(block_sizes)

    def hit(self, sequence: _Sequence) -> int:
        """Gives a sequence the cached blocks of its beginning, aligned for all groups; returns how many tokens."""
        step = max(self.block_sizes)
        best = 0
        for end in range(step, len(sequence.tokens), step):
            keys = [[tuple(sequence.tokens[: (i + 1) * size]) for i in range(end // size)] for size in self.block_sizes]
            if all(key in self.hashes[group] for group, of_group in enumerate(keys) for key in of_group):
                best = end
        sequence.blocks = []
        for group, size in enumerate(self.block_sizes):
            blocks = [self.hashes[group][tuple(sequence.tokens[: (i + 1) * size])] for i in range(best // size)]
            for block in blocks:
                self.owners[block] = self.owners.get(block, 0) + 1
                if block in self.free:
                    self.free.remove(block)
            sequence.blocks.append(blocks)
        sequence.num_computed = best
        return best

    def allocate(self, sequence: _Sequence, num_tokens: int) -> list[list[int]] | None:
        """Hands out blocks for so many tokens, and some more; None where there are not enough."""
        wanted = [-(-(num_tokens + self.lookahead) // size) for size in self.block_sizes]
        missing = [max(0, want - len(has)) for want, has in zip(wanted, sequence.blocks, strict=True)]
        if sum(missing) > len(self.free):
            return None
        handed = []
        for group, count in enumerate(missing):
            blocks = [self.free.pop(0) for _ in range(count)]
            for block in blocks:
                self.owners[block] = 1
                self.entries[block] = {}
                for of_group in self.hashes:
                    for key in [key for key, held in of_group.items() if held == block]:
                        del of_group[key]
            sequence.blocks[group] += blocks
            handed.append(blocks)
        return handed

    def write(self, sequence: _Sequence, span: Span, version: int) -> None:
        for group, size in enumerate(self.block_sizes):
            for position in range(span.first, span.first + span.length):
                self.entries[sequence.blocks[group][position // size]][position % size] = version

    def cache(self, sequence: _Sequence) -> None:
        """Full blocks of settled tokens can be hit from now on; of two with the same content, the first."""
        for group, size in enumerate(self.block_sizes):
            for i in range(sequence.num_computed // size):
                self.hashes[group].setdefault(tuple(sequence.tokens[: (i + 1) * size]), sequence.blocks[group][i])

    def release(self, sequence: _Sequence) -> None:
        for blocks in sequence.blocks:
            for block in blocks:
                self.owners[block] -= 1
                if not self.owners[block]:
                    self.free.append(block)
        sequence.blocks, sequence.num_computed = [], 0

    def attended(self, sequence: _Sequence, end: int) -> int:
        """The oldest weights behind the entries before a position."""
        return min(
            self.entries[sequence.blocks[group][position // size]][position % size]
            for group, size in enumerate(self.block_sizes)
            for position in range(end)
        )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("block_sizes", "lookahead", "max_drafts"), [((4,), 0, 0), ((2, 4), 0, 0), ((4,), 3, 3), ((2, 4), 0, 2)]
)
def test_against_single_entries(seed: int, block_sizes: tuple[int, ...], lookahead: int, max_drafts: int) -> None:
    rng = random.Random(seed)
    cache = _Cache(block_sizes, num_blocks=60, lookahead=lookahead)
    running: dict[str, _Sequence] = {}
    waiting: dict[str, _Sequence] = {}
    prefixes = [[100 * p + i for i in range(rng.randrange(6, 20))] for p in range(3)]
    turns: list[list[int]] = []
    version, checked, hits, old = 0, 0, 0, 0
    for step in range(400):
        version += rng.random() < 0.15
        if rng.random() < 0.4:
            # Three beginnings that many share, and later turns of what was generated.
            earlier = rng.choice([*prefixes, *prefixes, *turns])
            prompt = earlier[: rng.randrange(3, 24)] + [rng.randrange(9) for _ in range(3)]
            waiting[f"r{step}"] = _Sequence(prompt)
        for name in [name for name in running if rng.random() < 0.05]:
            turns = [*turns[-4:], running[name].tokens]
            cache.release(running[name])
            cache.kv.forget(name)
            del running[name]
        if running and rng.random() < 0.05:
            name = rng.choice(list(running))
            cache.release(running[name])
            waiting[name] = running.pop(name)
        spans: dict[str, Span] = {}
        cache.kv.begin(version)
        for name, sequence in running.items():
            left = len(sequence.tokens) - sequence.num_computed
            count = min(left, rng.randrange(1, 6))
            drafts = rng.randrange(max_drafts + 1) if count == left else 0
            span = Span(sequence.num_computed, count + drafts, drafts)
            blocks = cache.allocate(sequence, span.first + span.length)
            if blocks is not None:
                spans[name] = span
                if any(blocks):
                    cache.kv.extend(name, blocks, span)
        for name in list(waiting):
            sequence = waiting[name]
            first = cache.hit(sequence)
            span = Span(first, min(len(sequence.tokens) - first, rng.randrange(1, 12)))
            if cache.allocate(sequence, span.first + span.length) is None:
                cache.release(sequence)
                continue
            hits += first > 0
            spans[name] = span
            running[name] = waiting.pop(name)
            cache.kv.admit(name, sequence.blocks, span)
        for name in set(cache.kv.unsettled) & spans.keys():
            cache.kv.compute(name, spans[name])
        cache.kv.finish()
        for name, span in spans.items():
            cache.write(running[name], span, version)
        told = dict(zip(spans, cache.kv.oldest(spans), strict=True))
        for name, span in spans.items():
            sequence = running[name]
            settled = span.first + span.length - span.num_drafts
            # The token that follows, and each position computed in this step, attended to all entries before it.
            for end in (span.first + 1, settled):
                assert told[name] == cache.attended(sequence, end), (seed, step, name, end)
                checked += 1
            old += told[name] < version
            sequence.num_computed = settled
            if settled == len(sequence.tokens):
                accepted = rng.randrange(span.num_drafts + 1)
                sequence.tokens += [rng.randrange(9) for _ in range(accepted + 1)]
                sequence.num_computed += accepted
            cache.cache(sequence)
    assert checked > 300
    assert hits > 5
    assert old > 20


def _alone(kv: KvVersions, name: str, version: int, tables: list[list[int]], span: Span) -> int:
    kv.begin(version)
    kv.admit(name, tables, span)
    kv.finish()
    return int(kv.oldest([name])[0])


def test_a_block_shared_in_the_step_that_writes_it() -> None:
    kv = KvVersions([4])
    kv.begin(3)
    # The second hits what the first is about to write, whichever is told first.
    kv.admit("second", [[7, 8, 9]], Span(8, 2))
    kv.admit("first", [[7, 8]], Span(0, 8))
    kv.finish()
    assert kv.oldest(["first", "second"]).tolist() == [3, 3]


def test_a_copied_block_is_as_old_as_its_source() -> None:
    kv = KvVersions([4])
    assert _alone(kv, "a", 0, [[5]], Span(0, 4)) == 0
    kv.begin(2)
    kv.copy(5, 6)
    kv.admit("b", [[6, 7]], Span(2, 3))
    kv.finish()
    assert kv.oldest(["b"]).tolist() == [0]


def test_a_request_that_goes_on_with_blocks_of_others_has_their_age() -> None:
    kv = KvVersions([4])
    assert _alone(kv, "a", 0, [[5]], Span(0, 4)) == 0
    assert _alone(kv, "b", 2, [[6, 7]], Span(0, 8)) == 2
    kv.begin(3)
    kv.replace("b", [[5, 7]])
    kv.replace("unknown", [[5]])
    kv.finish()
    assert kv.oldest(["b", "unknown"]).tolist() == [0, UNKNOWN]
    kv.begin(4)
    kv.replace("a", [[6, 7]])
    kv.finish()
    assert kv.oldest(["a"]).tolist() == [2]


def test_blocks_handed_out_again_are_new() -> None:
    kv = KvVersions([4])
    assert _alone(kv, "a", 0, [[5, 6]], Span(0, 8)) == 0
    assert _alone(kv, "b", 1, [[6]], Span(0, 3)) == 1
    assert _alone(kv, "c", 2, [[5, 7]], Span(4, 3)) == 0
    assert _alone(kv, "d", 2, [[6, 8]], Span(4, 3)) == 1


def test_what_came_before_the_recorder_is_unknown() -> None:
    kv = KvVersions([4])
    assert kv.oldest(["x"]).tolist() == [UNKNOWN]
    kv.begin(5)
    kv.extend("x", [[3]], Span(12, 1))
    kv.finish()
    assert kv.oldest(["x"]).tolist() == [UNKNOWN]
    # A later request that hits its block knows no more of it; one that writes the block anew does.
    assert _alone(kv, "y", 6, [[3, 4]], Span(4, 1)) == UNKNOWN
    assert _alone(kv, "z", 7, [[3]], Span(0, 2)) == 7


def test_null_blocks_count_for_nothing() -> None:
    kv = KvVersions([4])
    assert _alone(kv, "a", 0, [[5, 6]], Span(0, 8)) == 0
    assert _alone(kv, "b", 1, [[9, 6]], Span(0, 8)) == 1
    # A sliding window has let go of the first block.
    assert _alone(kv, "c", 2, [[0, 6, 7]], Span(8, 1)) == 1
    without = KvVersions([4], null_block=None)
    assert _alone(without, "a", 0, [[0]], Span(0, 4)) == 0
    assert _alone(without, "b", 1, [[0, 1]], Span(4, 1)) == 0


def test_blocks_in_reserve_are_written_when_they_are_reached() -> None:
    kv = KvVersions([4])
    assert _alone(kv, "a", 0, [[5, 6]], Span(0, 4)) == 0
    for version, first in ((1, 4), (2, 5)):
        kv.begin(version)
        kv.compute("a", Span(first, 1))
        kv.finish()
    assert not kv.unsettled
    assert _alone(kv, "b", 3, [[6, 8]], Span(4, 1)) == 1


@pytest.mark.parametrize(("accepted", "expected"), [(0, 1), (1, 0)])
def test_a_write_by_a_draft_counts_if_it_was_accepted(accepted: int, expected: int) -> None:
    kv = KvVersions([4])
    assert _alone(kv, "a", 0, [[5]], Span(0, 3)) == 0
    kv.begin(0)
    kv.extend("a", [[6]], Span(3, 3, num_drafts=2))
    kv.finish()
    kv.begin(1)
    kv.compute("a", Span(4 + accepted, 1))
    kv.finish()
    assert not kv.unsettled
    assert _alone(kv, "b", 2, [[6, 8]], Span(4, 1)) == expected
