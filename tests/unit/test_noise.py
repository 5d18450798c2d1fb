"""The noise of Model Runner V2, against an own implementation of its hash, and the hash against published values."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch

from tracekit.noise import draw, gumbel_noise

MASK = 0xFFFFFFFF


def murmur3(data: bytes, seed: int) -> int:
    """MurmurHash3 for x86, 32 bits, as its author describes it."""
    hashed = seed
    blocks = len(data) // 4
    for (block,) in struct.iter_unpack("<I", data[: 4 * blocks]):
        hashed ^= scrambled(block)
        hashed = ((hashed << 13 | hashed >> 19) * 5 + 0xE6546B64) & MASK
    hashed ^= scrambled(int.from_bytes(data[4 * blocks :], "little"))
    hashed ^= len(data)
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        hashed = ((hashed ^ hashed >> shift) * multiplier) & MASK
    return hashed ^ hashed >> 16


def scrambled(block: int) -> int:
    block = (block * 0xCC9E2D51) & MASK
    return ((block << 15 | block >> 17) * 0x1B873593) & MASK


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [(b"", 1, 0x514E28B7), (b"test", 0x9747B28C, 0x704B81DC), (b"Hello, world!", 0x9747B28C, 0x24884CBA)],
)
def test_hash_of_this_test(data: bytes, seed: int, expected: int) -> None:
    assert murmur3(data, seed) == expected


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (7, 1023), (2**31 - 1, 5), (2**63 - 1, 2**20), (-3, 11)])
def test_noise(seed: int, position: int) -> None:
    found = gumbel_noise(seed, position, 1000).numpy()
    for token_id in range(1000):
        key = struct.pack("<III", seed & MASK, (seed >> 32) & MASK, position) + struct.pack("<I", token_id)
        uniform = float(np.float32((murmur3(key, 0) + 0.5) * 2.0**-32))
        expected = -math.log(-math.log1p(-uniform)) if uniform < 1 else math.inf
        assert math.isclose(found[token_id], expected, rel_tol=1e-6, abs_tol=1e-6)


def test_draws_follow_the_distribution() -> None:
    probabilities = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625, 0.0])
    logits_BV = torch.from_numpy(np.log(probabilities, where=probabilities > 0, out=np.full(6, -np.inf)))
    drawn = draw(logits_BV.expand(20_000, 6), [3] * 20_000, list(range(1, 20_001))).numpy()
    shares = np.bincount(drawn, minlength=6) / 20_000
    # Five standard deviations of a count.
    assert np.all(np.abs(shares - probabilities) <= 5 * np.sqrt(probabilities * (1 - probabilities) / 20_000))


def test_without_a_seed_the_most_probable_token_is_taken() -> None:
    logits_BV = torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    assert draw(logits_BV, [None, None], [4, 9]).tolist() == [1, 0]
