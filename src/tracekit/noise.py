"""The random numbers of Model Runner V2's sampler, made again from seed and position.

It draws by Gumbel-max: the token whose logit plus noise is largest. The noise of a token is a hash (MurmurHash3, 32
bits) of the request's seed, the position and the token's id, so the same draw can be applied to another distribution.

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["draw", "gumbel_noise"]

_MASK = 0xFFFFFFFF


def gumbel_noise(seed: int, position: int, vocab_size: int, device: torch.device | None = None) -> Tensor:
    """Returns the noise of one draw.

    Args:
        seed: the request's own.
        position: place of the token before the one that is drawn, in the whole sequence.
        vocab_size: V.

    Returns:
        float64 [V], right to the rounding of vLLM's float32 kernel.
    """
    keys = torch.tensor([seed & _MASK, (seed >> 32) & _MASK, position & _MASK], device=device)
    hashed = torch.zeros((), dtype=torch.int64, device=device)
    for key in keys:
        hashed = _mixed(hashed, key)
    ids_V = torch.arange(vocab_size, dtype=torch.int64, device=device)
    hashed_V = _finished(_mixed(hashed, ids_V) ^ 16)
    # Uniform on (0, 1) in float32, as two halves that are exact.
    uniform_V = (hashed_V >> 16).float() * 2.0**-16 + ((hashed_V & 0xFFFF).float() + 0.5) * 2.0**-32
    return -torch.log(-torch.log1p(-uniform_V.double()))


def draw(logits_BV: Tensor, seeds: Sequence[int | None], positions: Sequence[int]) -> Tensor:
    """Returns which token each row's random numbers pick.

    Args:
        logits_BV: processed logits; excluded tokens are -inf.
        seeds: of each row's request; None takes the most probable token, as a greedy request does.
        positions: where each row's token stands in its sequence, at least 1.

    Returns:
        int64 [B].
    """
    drawn_B = logits_BV.argmax(1)
    for row, (seed, position) in enumerate(zip(seeds, positions, strict=True)):
        if seed is not None:
            noise_V = gumbel_noise(seed, position - 1, logits_BV.shape[1], logits_BV.device)
            drawn_B[row] = (logits_BV[row].double() + noise_V).argmax()
    return drawn_B


def _mixed(hashed: Tensor, key: Tensor) -> Tensor:
    key = _rotated((key * 0xCC9E2D51) & _MASK, 15)
    key = (key * 0x1B873593) & _MASK
    return (_rotated(hashed ^ key, 13) * 5 + 0xE6546B64) & _MASK


def _rotated(value: Tensor, bits: int) -> Tensor:
    return ((value << bits) | (value >> (32 - bits))) & _MASK


def _finished(hashed: Tensor) -> Tensor:
    hashed = ((hashed ^ (hashed >> 16)) * 0x85EBCA6B) & _MASK
    hashed = ((hashed ^ (hashed >> 13)) * 0xC2B2AE35) & _MASK
    return hashed ^ (hashed >> 16)
