"""Reduces whole logits rows to the figures that the trace keeps; one code for recorder and replayer.

Shape suffixes: B rows, V vocabulary, K candidates, N blocks of the vocabulary or entries that truncation kept,
C entries in chosen blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["ProcessedRows", "RawRows", "concat_rows", "reduce_processed", "reduce_raw", "top_candidates"]

_BLOCK = 64
# Rows that keep less than one in so many entries are summed over these alone.
_FEW = 64
_INT32_MIN = -(2**31)


class _Rows:
    """Tensors of one entry a row, named as columns of the table `tokens`."""

    def columns(self) -> dict[str, npt.NDArray[np.generic]]:
        """Returns host arrays by column name."""
        return {field.name: getattr(self, field.name).cpu().numpy() for field in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class RawRows(_Rows):
    """Figures of the raw distribution; every field is [B] but the last two, which are [B, K]."""

    logit: Tensor
    logsumexp: Tensor
    logprob: Tensor
    rank: Tensor
    num_tied: Tensor
    entropy: Tensor
    logit_min: Tensor
    argmax_token_id: Tensor
    top1_margin: Tensor
    top_token_ids: Tensor
    top_logits: Tensor


@dataclass(frozen=True)
class ProcessedRows(_Rows):
    """Figures of the distribution that tokens were drawn from; every field is [B]."""

    processed_logprob: Tensor
    kept_count: Tensor
    kept_mass: Tensor


RowsT = TypeVar("RowsT", RawRows, ProcessedRows)


def concat_rows(pieces: list[RowsT]) -> RowsT:
    """Returns the rows of all pieces, in their order."""
    kind = type(pieces[0])
    return kind(*(torch.cat([getattr(piece, field.name) for piece in pieces]) for field in fields(kind)))


def reduce_raw(logits_BV: Tensor, token_ids_B: Tensor, top_k: int, *, as_engine: bool = False) -> RawRows:
    """Reduces raw logits.

    Args:
        logits_BV: raw logits in any float dtype; not modified.
        token_ids_B: the token of each row, int64.
        top_k: number of candidates K to keep; 0 keeps none.
        as_engine: take `logprob` and `logsumexp` from torch.log_softmax, as engines do: `logprob` is then bit-equal
            to what they report. Its serial sum on a CPU is off by about 1e-5; otherwise both are right to float32
            rounding.

    Returns:
        float32 figures. `rank` is 1 + the number of strictly greater logits, `num_tied` how many other
        entries equal the token's. Candidates are sorted by logit, then by id, also among ties at the last place.
    """
    # Widened once: CPU kernels compare and reduce float32 several times faster than bf16.
    logits_BV = logits_BV.float()
    token_logit_B1 = logits_BV.gather(1, token_ids_B.unsqueeze(1))
    scratch_BV = torch.empty_like(logits_BV)
    num_greater_B = torch.gt(logits_BV, token_logit_B1, out=scratch_BV).sum(1).int()
    num_equal_B = torch.eq(logits_BV, token_logit_B1, out=scratch_BV).sum(1).int()
    top_ids_BK, top_logits_BK = top_candidates(logits_BV, max(top_k, 2))

    max_B = top_logits_BK[:, 0]
    logit_B = token_logit_B1.squeeze(1)
    logit_min_B = logits_BV.amin(1)
    if as_engine:
        logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
        logprob_B = logprobs_BV.gather(1, token_ids_B.unsqueeze(1)).squeeze(1)
        logsumexp_B = max_B - logprobs_BV.gather(1, top_ids_BK[:, :1]).squeeze(1)
    else:
        logprobs_BV = torch.sub(logits_BV, max_B.unsqueeze(1), out=scratch_BV)
        log_sum_B = logprobs_BV.exp().sum(1).log()
        logsumexp_B, logprob_B = max_B + log_sum_B, (logit_B - max_B) - log_sum_B
        logprobs_BV.sub_(log_sum_B.unsqueeze(1))
    if bool(logit_min_B.isneginf().any()):
        # exp underflows to 0 long before -1e4; with -inf itself, 0 * -inf would make a NaN of a masked entry.
        logprobs_BV = logprobs_BV.clamp_(min=-1e4)
    entropy_B = -torch.exp(logprobs_BV, out=scratch_BV if as_engine else None).mul_(logprobs_BV).sum(1)
    return RawRows(
        logit=logit_B,
        logsumexp=logsumexp_B,
        logprob=logprob_B,
        rank=num_greater_B + 1,
        num_tied=num_equal_B - 1,
        entropy=entropy_B,
        logit_min=logit_min_B,
        argmax_token_id=top_ids_BK[:, 0].int(),
        top1_margin=top_logits_BK[:, 0] - top_logits_BK[:, 1],
        top_token_ids=top_ids_BK[:, :top_k].int(),
        top_logits=top_logits_BK[:, :top_k],
    )


def reduce_processed(
    processed_BV: Tensor,
    token_ids_B: Tensor,
    untruncated_logsumexp_B: Tensor | None = None,
    *,
    as_engine: bool = False,
) -> ProcessedRows:
    """Reduces processed logits, with -inf where an entry is excluded.

    Args:
        processed_BV: float32; not modified.
        token_ids_B: the token of each row, int64.
        untruncated_logsumexp_B: logsumexp of the same rows before min-p, top-k and top-p; without it `kept_mass`
            is NaN.
        as_engine: see `reduce_raw`.

    Returns:
        `kept_mass` is exp(logsumexp - untruncated_logsumexp): the probability that truncation kept.
    """
    token_B = processed_BV.gather(1, token_ids_B.unsqueeze(1)).squeeze(1)
    max_B = processed_BV.amax(1)
    rows_N, ids_N = (processed_BV > -torch.inf).nonzero(as_tuple=True)
    kept_count_B = torch.bincount(rows_N, minlength=len(processed_BV)).int()
    if len(rows_N) <= processed_BV.numel() // _FEW:
        # Rows that keep few entries are summed over these alone: the zeros of the rest add nothing.
        weights_N = (processed_BV[rows_N, ids_N] - max_B[rows_N]).exp_()
        log_sum_B = torch.zeros_like(max_B).index_add_(0, rows_N, weights_N).log()
    else:
        log_sum_B = (processed_BV - max_B.unsqueeze(1)).exp_().sum(1).log()
    logprob_B = (token_B - max_B) - log_sum_B
    if as_engine and len(rows_N) > processed_BV.numel() // _FEW:
        logprob_B = torch.log_softmax(processed_BV, dim=-1).gather(1, token_ids_B.unsqueeze(1)).squeeze(1)
    if untruncated_logsumexp_B is None:
        kept_mass_B = torch.full_like(log_sum_B, torch.nan)
    else:
        kept_mass_B = ((max_B - untruncated_logsumexp_B) + log_sum_B).exp().clamp(max=1.0)
    return ProcessedRows(logprob_B, kept_count_B, kept_mass_B)


def top_candidates(logits_BV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the ids (int64) and logits (float32) of the k largest entries, [B, k], by logit and then by id.

    The vocabulary is never sorted: the k-th largest of the blocks' maxima bounds the k-th largest entry from
    below, so only blocks that reach it can hold a candidate. Keys of (logit, id) make the order unique.
    """
    vocab = logits_BV.shape[1]
    k = min(k, vocab)
    blocks_BN = _block_maxima(logits_BV)
    num_blocks = min(_num_blocks(blocks_BN, k), blocks_BN.shape[1])
    chosen_BN = blocks_BN.topk(num_blocks, dim=1, sorted=False).indices
    offsets = torch.arange(_BLOCK, device=logits_BV.device)
    ids_BC = (chosen_BN.unsqueeze(2) * _BLOCK + offsets).flatten(1)
    inside_BC = ids_BC < vocab
    values_BC = logits_BV.gather(1, ids_BC.clamp(max=vocab - 1)).float()
    keys_BC = (_ordered_bits(values_BC) << 32) | (0x7FFFFFFF - ids_BC)
    keys_BC = keys_BC.masked_fill_(~inside_BC, torch.iinfo(torch.int64).min)
    keys_BK = keys_BC.topk(k, dim=1).values
    ids_BK = 0x7FFFFFFF - (keys_BK & 0x7FFFFFFF)
    return ids_BK, logits_BV.gather(1, ids_BK).float()


def _block_maxima(logits_BV: Tensor) -> Tensor:
    whole = logits_BV.shape[1] // _BLOCK * _BLOCK
    maxima_BN = logits_BV[:, :whole].reshape(len(logits_BV), -1, _BLOCK).amax(2)
    if whole < logits_BV.shape[1]:
        maxima_BN = torch.cat([maxima_BN, logits_BV[:, whole:].amax(1, keepdim=True)], 1)
    return maxima_BN


def _num_blocks(blocks_BN: Tensor, k: int) -> int:
    """How many blocks may hold one of the k candidates, in the row that needs most of them."""
    if blocks_BN.shape[1] <= k:
        return blocks_BN.shape[1]
    bound_B1 = blocks_BN.topk(k, dim=1).values[:, -1:]
    return int((blocks_BN >= bound_B1).sum(1).max())


def _ordered_bits(values: Tensor) -> Tensor:
    """Maps float32 to int64 so that integers compare as the floats do (-0.0 as 0.0, NaN above all)."""
    bits = (values + 0.0).view(torch.int32).long()
    ordered: Tensor = torch.where(bits < 0, _INT32_MIN - bits, bits)
    return ordered
