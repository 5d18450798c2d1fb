"""Reduces whole logits rows to the figures that the trace keeps; one code for recorder and replayer.

Shape suffixes: B rows, V vocabulary, K candidates, N rows that need a closer look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracekit.candidates import top_candidates
from tracekit.normaliser import row_totals
from tracekit.placement import is_on_host, scratch, widened
from tracekit.truncation import find_cut

__all__ = [
    "ProcessedRows",
    "RawRows",
    "concat_rows",
    "reduce_processed",
    "reduce_raw",
    "reduce_truncated",
    "top_candidates",
]

# A serial sum on a CPU is right to float32 rounding where less than one entry in so many is not 0.
_FEW = 64


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
_Floats: TypeAlias = npt.NDArray[np.float32]


def concat_rows(pieces: list[RowsT]) -> RowsT:
    """Returns the rows of all pieces, in their order."""
    kind = type(pieces[0])
    return kind(*(torch.cat([getattr(piece, field.name) for piece in pieces]) for field in fields(kind)))


def reduce_raw(logits_BV: Tensor, token_ids_B: Tensor, top_k: int, *, as_engine: bool = False) -> RawRows:
    """Reduces raw logits; on a device without waiting for it.

    Args:
        logits_BV: raw logits in any float dtype; not modified.
        token_ids_B: the token of each row, int64.
        top_k: number of candidates K to keep, at most the vocabulary; 0 keeps none.
        as_engine: take `logprob` and `logsumexp` from torch.log_softmax, as engines do: `logprob` is then bit-equal
            to what they report. Its serial sum on a CPU is off by about 1e-5; otherwise both are right to float32
            rounding.

    Returns:
        float32 figures. `rank` is 1 + the number of strictly greater logits, `num_tied` how many other
        entries equal the token's. Candidates are sorted by logit, then by id, also among ties at the last place.
        `top1_margin` is NaN in a vocabulary of one. Rows with NaN or +inf have NaN sums.
    """
    # Widened once: CPU kernels compare and reduce float32 several times faster than bf16.
    logits_BV = widened(logits_BV, 2)
    token_ids_B1 = token_ids_B.unsqueeze(1)
    logit_B1 = logits_BV.gather(1, token_ids_B1)
    logit_min_B = logits_BV.amin(1)
    top_ids_BK, top_logits_BK = top_candidates(logits_BV, max(top_k, 2))
    max_B1, best_ids_B1 = top_logits_BK[:, :1], top_ids_BK[:, :1]
    num_greater_B, num_equal_B = _compare(logits_BV, logit_B1, top_logits_BK)

    # As in `normaliser`: the sum that softmax divides by cancels out of all that is made of it here.
    probs_BV = torch.softmax(logits_BV, dim=1, out=scratch(logits_BV, 0))
    total_B1 = probs_BV.sum(1, keepdim=True)
    log_sum_B1 = (total_B1 / probs_BV.gather(1, best_ids_B1)).log_()
    if as_engine:
        shifted_BV = torch.log_softmax(logits_BV, dim=1, out=scratch(logits_BV, 1))
        logprob_B1 = shifted_BV.gather(1, token_ids_B1)
        best_B1 = shifted_BV.gather(1, best_ids_B1)
        logsumexp_B1 = max_B1 - best_B1
    else:
        shifted_BV = torch.sub(logits_BV, max_B1, out=scratch(logits_BV, 1))
        logprob_B1 = (logit_B1 - max_B1) - log_sum_B1
        best_B1 = torch.zeros_like(max_B1)
        logsumexp_B1 = max_B1 + log_sum_B1
    if not is_on_host(logits_BV) or -torch.inf in logit_min_B.tolist():
        # exp underflows to 0 long before -1e4; with -inf itself, 0 * -inf would make a NaN of a masked entry.
        shifted_BV.clamp_(min=-1e4)
    mean_shifted_B1 = probs_BV.mul_(shifted_BV).sum(1, keepdim=True) / total_B1
    entropy_B1 = log_sum_B1 + best_B1 - mean_shifted_B1
    second_B1 = top_logits_BK[:, 1:2] if top_logits_BK.shape[1] > 1 else torch.full_like(max_B1, torch.nan)
    return RawRows(
        logit=logit_B1.squeeze(1),
        logsumexp=logsumexp_B1.squeeze(1),
        logprob=logprob_B1.squeeze(1),
        rank=num_greater_B + 1,
        num_tied=(num_equal_B - 1).clamp_(min=0),
        entropy=entropy_B1.squeeze(1),
        logit_min=logit_min_B,
        argmax_token_id=top_ids_BK[:, 0].int(),
        top1_margin=(max_B1 - second_B1).squeeze(1),
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
    """Reduces processed logits, with -inf where an entry is excluded; on a device without waiting for it.

    Args:
        processed_BV: float32; not modified.
        token_ids_B: the token of each row, int64.
        untruncated_logsumexp_B: logsumexp of the same rows before min-p, top-k and top-p; without it `kept_mass`
            is NaN.
        as_engine: see `reduce_raw`.

    Returns:
        `kept_mass` is exp(logsumexp - untruncated_logsumexp): the probability that truncation kept.
    """
    processed_BV = widened(processed_BV, 2)
    token_ids_B1 = token_ids_B.unsqueeze(1)
    max_B1 = processed_BV.amax(1, keepdim=True)
    kept_count_B = torch.gt(processed_BV, -torch.inf, out=scratch(processed_BV, 0)).sum(1).int()
    if as_engine:
        logprobs_BV = torch.log_softmax(processed_BV, dim=1, out=scratch(processed_BV, 0))
        logprob_B1 = logprobs_BV.gather(1, token_ids_B1)
        log_sum_B1 = -logprobs_BV.amax(1, keepdim=True)
        if untruncated_logsumexp_B is not None and is_on_host(processed_BV):
            many_B = kept_count_B > processed_BV.shape[1] // _FEW
            rows_N = many_B.logical_and_(~untruncated_logsumexp_B.isnan()).nonzero().squeeze(1)
            if len(rows_N):
                many_NV = torch.index_select(processed_BV, 0, rows_N, out=scratch(processed_BV, 1)[: len(rows_N)])
                log_sum_B1[rows_N] = row_totals(many_NV).log_().unsqueeze(1)
    else:
        log_sum_B1 = row_totals(processed_BV).log_().unsqueeze(1)
        logprob_B1 = (processed_BV.gather(1, token_ids_B1) - max_B1) - log_sum_B1
    if untruncated_logsumexp_B is None:
        kept_mass_B1 = torch.full_like(max_B1, torch.nan)
    else:
        kept_mass_B1 = ((max_B1 - untruncated_logsumexp_B.unsqueeze(1)) + log_sum_B1).exp_().clamp_(max=1.0)
    return ProcessedRows(logprob_B1.squeeze(1), kept_count_B, kept_mass_B1.squeeze(1))


def reduce_truncated(
    logits_BV: Tensor,
    token_ids_B: Tensor,
    top_k: Sequence[int],
    top_p: Sequence[float],
    untruncated_logsumexp_B: Tensor | None = None,
    *,
    keep_ties: bool = False,
) -> ProcessedRows:
    """Reduces processed logits that top-k and top-p have not been applied to, without making the truncated tensor.

    Args:
        logits_BV: logits after temperature and min-p, in any float dtype; not modified.
        token_ids_B: the token of each row, int64.
        top_k: see `truncation.find_cut`.
        top_p: see `truncation.find_cut`.
        untruncated_logsumexp_B: logsumexp before min-p; without it no row had min-p.
        keep_ties: see `truncation.find_cut`.

    Returns:
        Figures right to float32 rounding. The logprob of an excluded token is -inf. A token that equals the last one
        kept counts as kept: which of equals are is not known, but this one was drawn.
    """
    logits_BV = widened(logits_BV, 2)
    cut = find_cut(logits_BV, top_k, top_p, keep_ties=keep_ties)
    max_B, logit_B = logits_BV.amax(1), logits_BV.gather(1, token_ids_B.unsqueeze(1)).squeeze(1)
    excluded_B = torch.where(logit_B < cut.threshold_R, -torch.inf, 0.0)
    logprob_B = (logit_B - max_B) - cut.kept_R.log() + excluded_B
    if untruncated_logsumexp_B is None:
        kept_mass_B = cut.kept_R / row_totals(logits_BV)
    else:
        kept_mass_B = cut.kept_R * (max_B - untruncated_logsumexp_B).exp_()
    return ProcessedRows(logprob_B.float(), cut.num_kept_R.int(), kept_mass_B.clamp_(max=1.0).float())


def _compare(logits_BV: Tensor, logit_B1: Tensor, top_logits_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Counts each row's entries that are greater than the token's, and those equal to it; int32."""
    if is_on_host(logits_BV):
        return _compare_on_host(logits_BV.numpy(), logit_B1.numpy(), top_logits_BK.numpy())
    return (logits_BV > logit_B1).sum(1, dtype=torch.int32), (logits_BV == logit_B1).sum(1, dtype=torch.int32)


def _compare_on_host(logits_BV: _Floats, logit_B1: _Floats, top_logits_BK: _Floats) -> tuple[Tensor, Tensor]:
    # Candidates tell both where the token lies strictly above the last of them. NumPy counts flags the quickest.
    num_greater_B = (top_logits_BK > logit_B1).sum(1, dtype=np.int32)
    num_equal_B = (top_logits_BK == logit_B1).sum(1, dtype=np.int32)
    for row in np.flatnonzero(logit_B1[:, 0] <= top_logits_BK[:, -1]):
        num_greater_B[row] = np.count_nonzero(logits_BV[row] > logit_B1[row])
        num_equal_B[row] = np.count_nonzero(logits_BV[row] == logit_B1[row])
    return torch.from_numpy(num_greater_B), torch.from_numpy(num_equal_B)
