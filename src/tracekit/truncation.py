"""Finds what top-k and top-p keep of logits rows, without sorting the vocabulary.

Top-k keeps the k largest logits and all that equal the last of them. Top-p then keeps the fewest largest whose share
of what top-k kept reaches p. vLLM's sampler keeps the same where it sorts (`apply_top_k_top_p_pytorch`), up to two
things. There the shares are added up in float32, here in float64: in 2 of 8,000 rows of a model one token fell on
the other side. And which of several equal logits at the edge of top-p stay is left to a sort that promises nothing
about equals; here the highest ids do, as after a stable sort.

Both edges are searched in the same way. Floats order as the integers that `ordered_bits` makes of them, so the edge
is found digit by digit in histograms of counts or masses: 11 bits, 11 bits, 10 bits.

Shape suffixes: R rows, V vocabulary, C candidates, H bins of a histogram.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracekit.candidates import ordered_bits, top_candidates, unordered
from tracekit.normaliser import row_totals
from tracekit.placement import from_host, is_on_host, scratch, widened

__all__ = ["Cut", "apply_cut", "find_cut", "truncates"]

# The digits of the search: bits below the digit, and values it may have.
_DIGITS = ((21, 2048), (10, 2048), (0, 1024))
_NUM_CANDIDATES = 64
# Masses of candidates are compared with float32 totals; nearer than this to the edge they do not decide.
_DOUBT = 1e-6
_INT32_MIN = -(2**31)
_LEAST_MASS = float(np.finfo(np.float64).tiny)
# float64 masses at once: on a CPU few enough to stay in its caches.
_HOST_CHUNK_BYTES = 4 << 20
_DEVICE_CHUNK_BYTES = 32 << 20


class Cut(NamedTuple):
    """What top-k and top-p keep of R rows: logits above a threshold, and of those equal to it the highest ids.

    Attributes:
        threshold_R: float32; -inf where nothing is excluded.
        num_dropped_R: int64, entries equal to the threshold that are excluded, those with the lowest ids.
        num_kept_R: int64, entries that stay; those that were -inf are not counted.
        kept_R: float64, sum of exp(logit - max) over what stays; NaN for rows with NaN or inf.
    """

    threshold_R: Tensor
    num_dropped_R: Tensor
    num_kept_R: Tensor
    kept_R: Tensor


class _Limits(NamedTuple):
    top_k_R1: Tensor  # int64, the vocabulary where nothing limits
    top_p_R1: Tensor  # float32
    any_top_k: bool
    any_top_p: bool
    keep_ties: bool

    def of(self, rows: Tensor | slice) -> _Limits:
        return self._replace(top_k_R1=self.top_k_R1[rows], top_p_R1=self.top_p_R1[rows])


def truncates(top_k: int, top_p: float, vocab_size: int) -> bool:
    """Whether a row of such parameters loses entries."""
    return 0 < top_k < vocab_size or bool(np.float32(top_p) < 1)


def find_cut(logits_RV: Tensor, top_k: Sequence[int], top_p: Sequence[float], *, keep_ties: bool = False) -> Cut:
    """Finds what top-k and then top-p keep; on a device without waiting for it.

    Args:
        logits_RV: logits in any float dtype, -inf where an entry is excluded already; not modified.
        top_k: entries to keep in each row; 0 or less, or the vocabulary and more, keeps all.
        top_p: mass to keep in each row, rounded to float32 as engines hold it; 1 keeps all.
        keep_ties: top-p keeps all that equal the last entry it keeps, as FlashInfer's samplers do.
    """
    logits_RV = widened(logits_RV, 2)
    vocab = logits_RV.shape[1]
    limits = _Limits(
        from_host([k if 0 < k < vocab else vocab for k in top_k], torch.int64, logits_RV.device).unsqueeze(1),
        from_host(top_p, torch.float32, logits_RV.device).unsqueeze(1),
        any(0 < k < vocab for k in top_k),
        any(np.float32(p) < 1 for p in top_p),
        keep_ties,
    )
    if not is_on_host(logits_RV):
        return _search(logits_RV, limits)
    cut, is_sure_R = _find_among_candidates(logits_RV, limits)
    rows_N = (~is_sure_R).nonzero().squeeze(1)
    if len(rows_N):
        logits_NV = torch.index_select(logits_RV, 0, rows_N, out=scratch(logits_RV, 7)[: len(rows_N)])
        searched = _search(logits_NV, limits.of(rows_N))
        for of_all, of_some in zip(cut, searched, strict=True):
            of_all[rows_N] = of_some
    return cut


def apply_cut(logits_RV: Tensor, cut: Cut, drawn_ids_R: Tensor | None = None) -> None:
    """Sets what the cut excludes to -inf.

    Args:
        logits_RV: what the cut was found for, float32.
        cut: from `find_cut`.
        drawn_ids_R: a token of each row, int64, that stays before others that equal it.
    """
    threshold_R1, num_dropped_R1 = cut.threshold_R.unsqueeze(1), cut.num_dropped_R.unsqueeze(1)
    drawn_R1 = None if drawn_ids_R is None else drawn_ids_R.unsqueeze(1)
    logits_RV.masked_fill_(logits_RV < threshold_R1, -torch.inf)
    if not is_on_host(logits_RV):
        _drop_ties(logits_RV, threshold_R1, num_dropped_R1, drawn_R1)
        return
    rows_N = cut.num_dropped_R.nonzero().squeeze(1)
    if len(rows_N):
        logits_NV = logits_RV[rows_N]
        drawn_N1 = None if drawn_R1 is None else drawn_R1[rows_N]
        _drop_ties(logits_NV, threshold_R1[rows_N], num_dropped_R1[rows_N], drawn_N1)
        logits_RV[rows_N] = logits_NV


def _drop_ties(logits_RV: Tensor, threshold_R1: Tensor, num_dropped_R1: Tensor, drawn_R1: Tensor | None) -> None:
    may_drop_RV = logits_RV == threshold_R1
    if drawn_R1 is not None:
        may_drop_RV.scatter_(1, drawn_R1, False)
    dropped_RV = may_drop_RV.cumsum(1, dtype=torch.int32) <= num_dropped_R1
    logits_RV.masked_fill_(dropped_RV.logical_and_(may_drop_RV), -torch.inf)


def _find_among_candidates(logits_RV: Tensor, limits: _Limits) -> tuple[Cut, Tensor]:
    """Returns the cut as the largest entries show it, and whether they show all of it."""
    vocab = logits_RV.shape[1]
    values_RC = top_candidates(logits_RV, _NUM_CANDIDATES)[1]
    num_candidates = values_RC.shape[1]
    weights_RC = _weights(values_RC, values_RC[:, :1])

    has_top_k_R1 = limits.top_k_R1 < vocab
    last_of_k_R1 = values_RC.gather(1, (limits.top_k_R1 - 1).clamp_(max=num_candidates - 1))
    in_top_k_RC = (values_RC >= last_of_k_R1) | ~has_top_k_R1
    total_R1 = (weights_RC * in_top_k_RC).sum(1, keepdim=True)
    is_exact_R1 = has_top_k_R1 | (num_candidates == vocab)
    if not bool(is_exact_R1.all()):
        total_R1 = torch.where(is_exact_R1, total_R1, row_totals(logits_RV).double().unsqueeze(1))

    target_R1 = torch.where(limits.top_p_R1 < 1, limits.top_p_R1 * total_R1, torch.inf)
    better_RC = weights_RC.cumsum(1) - weights_RC
    kept_RC = in_top_k_RC & (better_RC < target_R1)
    kept_RC[:, 0] = True
    threshold_R1 = values_RC.gather(1, kept_RC.sum(1, keepdim=True) - 1)
    tied_RC = values_RC == threshold_R1
    if limits.keep_ties:
        kept_RC |= tied_RC
    cut = Cut(
        threshold_R=threshold_R1.squeeze(1),
        num_dropped_R=(tied_RC & ~kept_RC).sum(1),
        num_kept_R=kept_RC.sum(1),
        kept_R=(weights_RC * kept_RC).sum(1),
    )
    is_seen_R1 = torch.where(has_top_k_R1, last_of_k_R1, threshold_R1) > values_RC[:, -1:]
    is_clear_R1 = (better_RC - target_R1).abs().amin(1, keepdim=True) > _DOUBT * total_R1
    return cut, (is_seen_R1 & (is_exact_R1 | is_clear_R1)).squeeze(1)


def _search(logits_RV: Tensor, limits: _Limits) -> Cut:
    """Searches whole rows, some at a time: their masses take several times the room of the logits."""
    num_rows, vocab = logits_RV.shape
    step = max(1, (_HOST_CHUNK_BYTES if is_on_host(logits_RV) else _DEVICE_CHUNK_BYTES) // (8 * vocab))
    pieces = [slice(start, start + step) for start in range(0, max(1, num_rows), step)]
    cuts = [_search_piece(logits_RV[piece], limits.of(piece)) for piece in pieces]
    return Cut(*(torch.cat(columns) for columns in zip(*cuts, strict=True)))


def _search_piece(logits_RV: Tensor, limits: _Limits) -> Cut:
    max_R1 = logits_RV.amax(1, keepdim=True)
    weights_RV = _weights(logits_RV, max_R1, scratch(logits_RV, 3, torch.float64))
    flags_RV = scratch(logits_RV, 1)
    spare_RV = scratch(logits_RV, 5, torch.int32)
    bits_RV = ordered_bits(scratch(logits_RV, 6).copy_(logits_RV), spare_RV).bitwise_xor_(_INT32_MIN)

    threshold_R1 = torch.full_like(max_R1, -torch.inf)
    if limits.any_top_k:
        edge_R1, _ = _search_edge(bits_RV, flags_RV.fill_(1), limits.top_k_R1)
        threshold_R1 = torch.where(limits.top_k_R1 < logits_RV.shape[1], edge_R1, threshold_R1)
        weights_RV.mul_(torch.ge(logits_RV, threshold_R1, out=flags_RV))
    kept_R1 = weights_RV.sum(1, keepdim=True)
    if limits.any_top_p:
        has_top_p_R1 = limits.top_p_R1 < 1
        target_R1 = (limits.top_p_R1 * kept_R1).clamp_(min=_LEAST_MASS)  # at least one entry stays
        edge_R1, better_R1 = _search_edge(bits_RV, weights_RV, target_R1)
        threshold_R1 = torch.where(has_top_p_R1, edge_R1, threshold_R1)

    num_better_R1 = torch.gt(logits_RV, threshold_R1, out=flags_RV).sum(1, keepdim=True).long()
    num_tied_R1 = torch.eq(logits_RV, threshold_R1, out=flags_RV).sum(1, keepdim=True).long()
    num_dropped_R1 = torch.zeros_like(num_tied_R1)
    if limits.any_top_p:
        weight_R1 = _weights(threshold_R1, max_R1)
        num_wanted_R1 = ((target_R1 - better_R1) / weight_R1).ceil_().long().clamp_(min=1)
        if not limits.keep_ties:
            num_dropped_R1 = torch.where(has_top_p_R1, (num_tied_R1 - num_wanted_R1).clamp_(min=0), 0)
        kept_R1 = torch.where(has_top_p_R1, better_R1 + (num_tied_R1 - num_dropped_R1) * weight_R1, kept_R1)
    is_cut_R1 = threshold_R1 > -torch.inf
    return Cut(
        threshold_R=threshold_R1.squeeze(1),
        num_dropped_R=num_dropped_R1.squeeze(1),
        num_kept_R=(num_better_R1 + (num_tied_R1 - num_dropped_R1) * is_cut_R1).squeeze(1),
        kept_R=kept_R1.squeeze(1),
    )


def _search_edge(bits_RV: Tensor, weights_RV: Tensor, target_R1: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the largest value at which the weights, summed from above, reach the target.

    Args:
        bits_RV: what the values are ordered by, as unsigned 32-bit integers in int32.
        weights_RV: floats; overwritten.
        target_R1: where to stop.

    Returns:
        The value as float32, and the weight of what lies strictly above it; both [R, 1].
    """
    edge_R1 = torch.full_like(target_R1, _INT32_MIN, dtype=torch.int64)
    better_R1 = torch.zeros_like(target_R1, dtype=weights_RV.dtype)
    for shift, num_bins in _DIGITS:
        bins_RV = torch.bitwise_right_shift(bits_RV, shift, out=scratch(bits_RV, 5, torch.int32))
        bins_RV.bitwise_and_(num_bins - 1)
        sums_RH = torch.zeros(len(bits_RV), num_bins, dtype=weights_RV.dtype, device=bits_RV.device)
        sums_RH.scatter_add_(1, scratch(bits_RV, 4, torch.int64).copy_(bins_RV), weights_RV)
        # Column h: the weight above the h highest values of the digit.
        above_RH = better_R1 + torch.nn.functional.pad(sums_RH.flip(1).cumsum(1), (1, 0))
        place_R1 = (above_RH[:, 1:] < target_R1).sum(1, keepdim=True).clamp_(max=num_bins - 1)
        better_R1 = above_RH.gather(1, place_R1)
        digit_R1 = num_bins - 1 - place_R1
        edge_R1 += digit_R1 << shift
        if shift:  # entries that differ in this digit count no more
            weights_RV.mul_(torch.eq(bins_RV, digit_R1.int(), out=scratch(bits_RV, 4)))
    return unordered(edge_R1.int()), better_R1


def _weights(logits: Tensor, max_R1: Tensor, out: Tensor | None = None) -> Tensor:
    """Returns exp(logit - max) in float64."""
    wide = logits.double() if out is None else out.copy_(logits)
    return wide.sub_(max_R1).exp_()
