"""Turns captured steps into rows of the table `tokens`, on the recorder's thread.

Shape suffixes: R rows that count, S rows of one slice, T those of it that truncation touched, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracekit.record.capture import Columns, StepCapture
from tracekit.reduction import ProcessedRows, RawRows, concat_rows, reduce_processed, reduce_raw
from tracekit.sampling import SamplingParams, processed_logits

# float32 bytes reduced at once: small enough to stay in a core's cache.
_SLICE_BYTES = 2 << 20


@dataclass
class _LiveRequest:
    params: SamplingParams
    prompt_ids: list[int]
    output_ids: list[int]


class StepReducer:
    """Reduces steps; keeps, for each live request, what its processed distribution depends on."""

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k
        self._live: dict[str, _LiveRequest] = {}

    def add_request(self, row: Columns, output_token_ids: tuple[int, ...]) -> None:
        """Takes note of a request from its `requests` row."""
        self._live[row["request_id"]] = _LiveRequest(
            SamplingParams.from_row(row),
            list(row.get("prompt_token_ids") or ()),
            list(output_token_ids),
        )

    def drop_request(self, request_id: str) -> None:
        self._live.pop(request_id, None)

    def reduce(self, capture: StepCapture) -> dict[str, Any] | None:
        """Returns columns of `tokens` for one step, or None where it has no rows."""
        if not capture.request_ids:
            return None
        rows_R = torch.from_numpy(capture.rows_R)
        token_ids_R = capture.token_ids_B.cpu()[rows_R].long()
        columns = self._figures(capture, rows_R, token_ids_R) if capture.raw_BV is not None else None
        self._extend_histories(capture, token_ids_R)
        if columns is None:
            return None
        columns |= {
            "request_id": capture.request_ids,
            "output_index": capture.output_index_R,
            "position": capture.position_R,
            "batch_index": capture.rows_R.astype(np.int32),
            "step_id": np.full(len(rows_R), capture.step["step_id"], np.int64),
            "token_id": token_ids_R.int().numpy(),
        }
        if capture.reported_B is not None:
            columns["reported_logprob"] = capture.reported_B[rows_R].float().numpy()
        return columns

    def _figures(self, capture: StepCapture, rows_R: Tensor, token_ids_R: Tensor) -> dict[str, Any]:
        assert capture.raw_BV is not None
        live = [self._live.get(request_id) for request_id in capture.request_ids]
        raw: list[RawRows] = []
        processed: list[ProcessedRows] = []
        num_slice = max(1, _SLICE_BYTES // (4 * capture.raw_BV.shape[1]))
        for start in range(0, len(rows_R), num_slice):
            rows_S, ids_S = rows_R[start : start + num_slice], token_ids_R[start : start + num_slice]
            raw_SV = _take_rows(capture.raw_BV, rows_S).float()
            figures = reduce_raw(raw_SV, ids_S, self._top_k, as_engine=True)
            raw.append(figures)
            masked_SV = raw_SV if capture.masked_BV is None else _take_rows(capture.masked_BV, rows_S).float()
            engine_SV = None if capture.processed_BV is None else _take_rows(capture.processed_BV, rows_S)
            processed.append(_processed(masked_SV, engine_SV, ids_S, live[start : start + num_slice], figures))
        source = "recomputed" if capture.processed_BV is None else "engine"
        known = [source == "engine" or request is not None for request in live]
        columns: dict[str, Any] = concat_rows(raw).columns()
        return columns | concat_rows(processed).columns() | {"processed_source": [source if k else None for k in known]}

    def _extend_histories(self, capture: StepCapture, token_ids_R: Tensor) -> None:
        for request_id, token_id in zip(capture.request_ids, token_ids_R.tolist(), strict=True):
            request = self._live.get(request_id)
            if request is not None and request.params.depends_on_output:
                request.output_ids.append(token_id)


def _take_rows(tensor_BV: Tensor, rows_S: Tensor) -> Tensor:
    """Returns rows of a tensor, uncopied where they lie side by side."""
    first, count = int(rows_S[0]), len(rows_S)
    return tensor_BV.narrow(0, first, count) if int(rows_S[-1]) == first + count - 1 else tensor_BV[rows_S]


def _processed(
    masked_SV: Tensor, engine_SV: Tensor | None, ids_S: Tensor, live: list[_LiveRequest | None], raw: RawRows
) -> ProcessedRows:
    """Reduces the engine's processed rows, or recomputed ones where it has none; unknown ones as `buffer` does."""
    if engine_SV is None:
        recomputed = processed_logits(masked_SV, *_arguments([request or _NEUTRAL for request in live]))
        rows = reduce_processed(recomputed.logits_BV, ids_S, recomputed.untruncated_logsumexp_B, as_engine=True)
        unknown = [i for i, request in enumerate(live) if request is None]
        rows.processed_logprob[unknown] = torch.nan
        rows.kept_count[unknown] = -1
        rows.kept_mass[unknown] = torch.nan
    elif torch.equal(engine_SV, masked_SV) and not bool(raw.logit_min.isneginf().any()):
        # Nothing was done to these rows: raw and processed are one distribution.
        kept_count = torch.full_like(raw.rank, engine_SV.shape[1])
        rows = ProcessedRows(raw.logprob.clone(), kept_count, torch.ones_like(raw.logprob))
    else:
        rows = reduce_processed(engine_SV, ids_S, _untruncated_logsumexp(masked_SV, live), as_engine=True)
    untouched = [i for i, request in enumerate(live) if request is not None and not request.params.truncates]
    rows.kept_mass[untouched] = 1.0
    return rows


def _untruncated_logsumexp(masked_SV: Tensor, live: list[_LiveRequest | None]) -> Tensor:
    """Returns what the engine's tensor no longer shows: the sum before truncation; NaN where nothing truncates."""
    logsumexp_S = torch.full((len(live),), torch.nan)
    scaled: list[int] = []
    changed: list[int] = []
    for i, request in enumerate(live):
        if request is not None and request.params.truncates:
            (scaled if request.params.only_scales else changed).append(i)
    if scaled:
        rows = torch.tensor(scaled)
        inverse_T1 = torch.tensor([[1 / request.params.temperature] for i in scaled if (request := live[i])])
        rows_TV = _take_rows(masked_SV, rows)
        max_T1 = rows_TV.amax(1, keepdim=True)
        weights_TV = rows_TV.sub(max_T1).mul_(inverse_T1).exp_()
        logsumexp_S[rows] = weights_TV.sum(1).log() + (max_T1 * inverse_T1).squeeze(1)
    if changed:
        whole = [_without_truncation(request) for i in changed if (request := live[i])]
        rows_TV = _take_rows(masked_SV, torch.tensor(changed))
        logsumexp_S[changed] = processed_logits(rows_TV, *_arguments(whole)).untruncated_logsumexp_B
    return logsumexp_S


def _without_truncation(request: _LiveRequest) -> _LiveRequest:
    return replace(request, params=replace(request.params, top_p=1.0, top_k=0, min_p=0.0))


def _arguments(live: list[_LiveRequest]) -> tuple[list[SamplingParams], list[list[int]], list[list[int]]]:
    return [r.params for r in live], [r.prompt_ids for r in live], [r.output_ids for r in live]


_NEUTRAL = _LiveRequest(SamplingParams(), [], [])
