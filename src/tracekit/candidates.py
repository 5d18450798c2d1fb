"""Finds the largest entries of logits rows without sorting the vocabulary.

Shape suffixes: B rows, V vocabulary, K candidates, N blocks of the vocabulary, L entries of a block,
C entries in chosen blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ordered_bits", "top_candidates", "unordered"]

_BLOCK = 64
_INT32_MAX = 2**31 - 1


def top_candidates(logits_BV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the ids (int64) and logits (float32) of the k largest entries, [B, k], by logit and then by id.

    Blocks of consecutive ids are ordered by their maximum, then by id, as their best entries are. So the k first
    blocks hold the k best entries. Keys of (logit, id) are unique: no order is left to a kernel's choice.
    """
    vocab = logits_BV.shape[1]
    k = min(k, vocab)
    maxima_BN = _block_maxima(logits_BV)
    num_blocks = maxima_BN.shape[1]
    blocks_N = torch.arange(max(num_blocks, _BLOCK), device=logits_BV.device)
    blocks_BK = (
        _keys(maxima_BN, blocks_N[:num_blocks]).topk(min(k, num_blocks), dim=1, largest=False, sorted=False).indices
    )
    ids_BC = torch.add(blocks_N[:_BLOCK], blocks_BK.unsqueeze(2), alpha=_BLOCK).flatten(1)
    if vocab % _BLOCK:
        keys_BC = _keys(logits_BV.gather(1, ids_BC.clamp(max=vocab - 1)).float(), ids_BC)
        keys_BC.masked_fill_(ids_BC >= vocab, torch.iinfo(torch.int64).max)
    else:
        keys_BC = _keys(logits_BV.gather(1, ids_BC).float(), ids_BC)
    ids_BK = keys_BC.topk(k, dim=1, largest=False).values.bitwise_and_(2**32 - 1)
    return ids_BK, logits_BV.gather(1, ids_BK).float()


def ordered_bits(values: Tensor, spare: Tensor | None = None) -> Tensor:
    """Turns float32, in place, into int32 that compare as the floats did; -0.0 as 0.0, any NaN outermost.

    Args:
        values: float32; overwritten.
        spare: int32 memory of the same shape, overwritten too; without it some is allocated.
    """
    return _flip_negative(values.add_(0.0).view(torch.int32), spare)


def unordered(bits: Tensor) -> Tensor:
    """Turns what `ordered_bits` made back into floats, in place."""
    return _flip_negative(bits).view(torch.float32)


def _flip_negative(bits: Tensor, spare: Tensor | None = None) -> Tensor:
    signs = torch.bitwise_right_shift(bits, 31, out=spare)
    return bits.bitwise_xor_(signs.bitwise_and_(_INT32_MAX))


def _block_maxima(logits_BV: Tensor) -> Tensor:
    whole = logits_BV.shape[1] // _BLOCK * _BLOCK
    maxima_BN = logits_BV[:, :whole].reshape(len(logits_BV), whole // _BLOCK, _BLOCK).amax(2)
    if whole < logits_BV.shape[1]:
        maxima_BN = torch.cat([maxima_BN, logits_BV[:, whole:].amax(1, keepdim=True)], 1)
    return maxima_BN.float()


def _keys(values: Tensor, ids: Tensor) -> Tensor:
    """Joins values and ids into int64 that put higher values first, then lower ids; overwrites values."""
    return torch.sub(ids, ordered_bits(values), alpha=2**32)
