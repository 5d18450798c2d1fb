"""The distribution a token was drawn from: read off the engine's tensor, or computed from what is known of it.

Shape suffixes: S rows of one slice, T those of it that truncation touched, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tracekit.noise import draw
from tracekit.record.capture import Ints
from tracekit.record.device import Device
from tracekit.record.forced import Forced
from tracekit.record.selection import Choice
from tracekit.record.unknown import UNKNOWN
from tracekit.reduction import ProcessedRows, RawRows, reduce_processed, reduce_truncated
from tracekit.sampling import SamplingParams, processed_logits


@dataclass
class LiveRequest:
    """What is remembered of a request while it runs."""

    params: SamplingParams
    prompt_ids: list[int]
    output_ids: list[int]
    choice: Choice
    forced: Forced | None = None

    def before(self, position: int) -> LiveRequest | None:
        """Returns it as it stood when a token was to come that was given with the prompt; None for other tokens."""
        if self.forced is None or self.forced.token_at(position) is None:
            return None
        num_given = position - self.forced.num_prompt_tokens
        prompt_ids = self.prompt_ids[: self.forced.num_prompt_tokens]
        return replace(self, prompt_ids=prompt_ids, output_ids=self.forced.token_ids[:num_given].tolist())


_NEUTRAL = LiveRequest(SamplingParams(), [], [], Choice(True, False, False))


@dataclass(frozen=True)
class Slice:
    """Rows that are reduced at once.

    Attributes:
        masked_SV: float32 raw logits after the grammar's mask.
        ids_S: the tokens drawn, int64.
        live: their requests as they stood before; None where one was never announced.
        raw: the figures of the raw rows.
        as_engine: see `reduction.reduce_raw`.
        is_masked: a grammar was active in this step.
    """

    masked_SV: Tensor
    ids_S: Tensor
    live: list[LiveRequest | None]
    raw: RawRows
    device: Device
    as_engine: bool
    is_masked: bool = False

    def reduce(self, seen_SV: Tensor | None, scaled_SV: Tensor | None, *, is_truncated: bool) -> ProcessedRows:
        """Reduces the distribution drawn from; what is not known of it is NaN or negative, see `buffer`.

        Args:
            seen_SV: what the engine showed of it, float32; None where it showed nothing.
            scaled_SV: the same before truncation, float32; None where the engine does not show it.
            is_truncated: what it showed is after top-k and top-p.
        """
        if seen_SV is None:
            return self._known_only(self._whole_mass(self._from_raw()))
        if is_truncated:
            return self._whole_mass(self._from_engine(seen_SV, scaled_SV))
        return self._known_only(self._whole_mass(self._from_untruncated(seen_SV, scaled_SV)))

    def draw(self, seen_SV: Tensor | None, positions: list[int], *, is_truncated: bool) -> Tensor:
        """Returns which token the random numbers of `Forced.draw` pick, int64 [S]; -1 where nothing is to be drawn.

        Args:
            seen_SV, is_truncated: as in `reduce`.
            positions: where the tokens stand in their sequences.
        """
        if seen_SV is None or not is_truncated:
            seen_SV = processed_logits(self.masked_SV, *_arguments([r or _NEUTRAL for r in self.live])).logits_BV
        asked = [None if request is None or request.forced is None else request.forced.draw for request in self.live]
        seeds = [None if seed is None or seed < 0 else seed for seed in asked]
        nothing = self.device.upload(np.array([seed is None for seed in asked]))
        return draw(seen_SV, seeds, positions).masked_fill_(nothing, -1)

    def _from_raw(self) -> ProcessedRows:
        """Recomputes it from raw logits and sampling parameters."""
        made = processed_logits(self.masked_SV, *_arguments([r or _NEUTRAL for r in self.live]), self.ids_S)
        lse_S = made.untruncated_logsumexp_B
        return reduce_processed(made.logits_BV, self.ids_S, lse_S, as_engine=self.as_engine)

    def _from_untruncated(self, given_SV: Tensor, scaled_SV: Tensor | None) -> ProcessedRows:
        """Truncates what a fused sampler was given, which is after all else; ties at the edge stay, as there."""
        params = [(request or _NEUTRAL).params for request in self.live]
        top_k = [0 if of_row.is_greedy else of_row.top_k for of_row in params]
        top_p = [1.0 if of_row.is_greedy else of_row.top_p for of_row in params]
        before_S = self._untruncated_logsumexp(scaled_SV)
        return reduce_truncated(given_SV, self.ids_S, top_k, top_p, before_S, keep_ties=True)

    def _from_engine(self, engine_SV: Tensor, scaled_SV: Tensor | None) -> ProcessedRows:
        """Reduces the very tensor that the engine drew from."""
        if self._is_raw(engine_SV):
            kept_count = torch.full_like(self.raw.rank, engine_SV.shape[1])
            return ProcessedRows(self.raw.logprob.clone(), kept_count, torch.ones_like(self.raw.logprob))
        before_S = self._untruncated_logsumexp(scaled_SV)
        return reduce_processed(engine_SV, self.ids_S, before_S, as_engine=self.as_engine)

    def _is_raw(self, engine_SV: Tensor) -> bool:
        """Whether nothing was done to these rows: raw and processed are one distribution."""
        if self.is_masked or not self.device.reads_freely:
            return False
        if not np.array_equal(engine_SV.numpy(), self.masked_SV.numpy()):
            return False
        return not bool(self.raw.logit_min.isneginf().any())

    def _whole_mass(self, rows: ProcessedRows) -> ProcessedRows:
        """Sets the kept mass of requests without truncation to exactly 1."""
        untouched = [request is not None and not request.params.truncates for request in self.live]
        if any(untouched):
            rows.kept_mass.masked_fill_(self.device.upload(np.array(untouched)), 1.0)
        return rows

    def _known_only(self, rows: ProcessedRows) -> ProcessedRows:
        """Blanks the rows of requests whose parameters are not known."""
        unknown = [request is None for request in self.live]
        if any(unknown):
            unknown_S = self.device.upload(np.array(unknown))
            rows.processed_logprob.masked_fill_(unknown_S, UNKNOWN)
            rows.kept_count.masked_fill_(unknown_S, -1)
            rows.kept_mass.masked_fill_(unknown_S, torch.nan)
        return rows

    def _untruncated_logsumexp(self, scaled_SV: Tensor | None) -> Tensor:
        """Returns what a truncated tensor no longer shows: the sum before it; NaN where nothing truncates."""
        device, live = self.device, self.live
        logsumexp_S = torch.full((len(live),), torch.nan, device=self.masked_SV.device)
        truncated = [(i, request) for i, request in enumerate(live) if request is not None and request.params.truncates]
        if truncated and scaled_SV is not None:
            return scaled_SV.logsumexp(1)
        scaled = [(i, request) for i, request in truncated if request.params.only_scales]
        changed = [(i, request) for i, request in truncated if not request.params.only_scales]
        if scaled:
            rows = np.array([i for i, _ in scaled])
            temperature_T1 = np.array([[request.params.temperature] for _, request in scaled], np.float32)
            inverse_T1 = device.upload(1 / temperature_T1)
            rows_TV = take_rows(self.masked_SV, rows, device)
            max_T1 = rows_TV.amax(1, keepdim=True)
            weights_TV = rows_TV.sub(max_T1).mul_(inverse_T1).exp_()
            sums_T = weights_TV.sum(1).log() + (max_T1 * inverse_T1).squeeze(1)
            logsumexp_S.index_copy_(0, device.upload(rows), sums_T)
        if changed:
            rows = np.array([i for i, _ in changed])
            whole = [_without_truncation(request) for _, request in changed]
            sums_T = processed_logits(
                take_rows(self.masked_SV, rows, device), *_arguments(whole)
            ).untruncated_logsumexp_B
            logsumexp_S.index_copy_(0, device.upload(rows), sums_T)
        return logsumexp_S


def take_rows(tensor_LX: Tensor, rows_S: Ints, device: Device) -> Tensor:
    """Returns rows of a tensor, uncopied where they lie side by side."""
    first, count = int(rows_S[0]), len(rows_S)
    if int(rows_S[-1]) == first + count - 1 and (count == 1 or bool((np.diff(rows_S) == 1).all())):
        return tensor_LX.narrow(0, first, count)
    return tensor_LX[device.upload(rows_S.astype(np.int64))]


def _without_truncation(request: LiveRequest) -> LiveRequest:
    return replace(request, params=replace(request.params, top_p=1.0, top_k=0, min_p=0.0))


def _arguments(live: list[LiveRequest]) -> tuple[list[SamplingParams], list[list[int]], list[list[int]]]:
    return [r.params for r in live], [r.prompt_ids for r in live], [r.output_ids for r in live]
