"""Turns captured steps into rows of the table `tokens`, on the recorder's thread.

Shape suffixes: R rows that count, S rows of one slice, V vocabulary.
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
            raw_SV = capture.raw_BV[rows_S]
            raw.append(reduce_raw(raw_SV, ids_S, self._top_k, as_engine=True))
            masked_SV = raw_SV if capture.masked_BV is None else capture.masked_BV[rows_S]
            engine_SV = None if capture.processed_BV is None else capture.processed_BV[rows_S]
            processed.append(_processed(masked_SV, engine_SV, ids_S, live[start : start + num_slice]))
        source = "recomputed" if capture.processed_BV is None else "engine"
        known = [source == "engine" or request is not None for request in live]
        columns: dict[str, Any] = concat_rows(raw).columns()
        return columns | concat_rows(processed).columns() | {"processed_source": [source if k else None for k in known]}

    def _extend_histories(self, capture: StepCapture, token_ids_R: Tensor) -> None:
        for request_id, token_id in zip(capture.request_ids, token_ids_R.tolist(), strict=True):
            request = self._live.get(request_id)
            if request is not None and request.params.depends_on_output:
                request.output_ids.append(token_id)


def _processed(
    masked_SV: Tensor, engine_SV: Tensor | None, ids_S: Tensor, live: list[_LiveRequest | None]
) -> ProcessedRows:
    """Reduces the engine's processed rows, or recomputed ones where it has none; unknown ones as `buffer` does."""
    if engine_SV is None:
        recomputed = processed_logits(masked_SV, *_arguments([request or _NEUTRAL for request in live]))
        rows = reduce_processed(recomputed.logits_BV, ids_S, recomputed.untruncated_logsumexp_B, as_engine=True)
        unknown = [i for i, request in enumerate(live) if request is None]
        rows.processed_logprob[unknown] = torch.nan
        rows.kept_count[unknown] = -1
        rows.kept_mass[unknown] = torch.nan
    else:
        # Of the mass, only the sum before truncation is missing, and without truncation it costs no sort.
        truncated = [i for i, request in enumerate(live) if request is not None and request.params.truncates]
        untruncated_S = torch.full((len(live),), torch.nan)
        if truncated:
            whole = [_without_truncation(request) for i in truncated if (request := live[i])]
            untruncated = processed_logits(masked_SV[truncated], *_arguments(whole)).untruncated_logsumexp_B
            untruncated_S[truncated] = untruncated
        rows = reduce_processed(engine_SV, ids_S, untruncated_S, as_engine=True)
    untouched = [i for i, request in enumerate(live) if request is not None and not request.params.truncates]
    rows.kept_mass[untouched] = 1.0
    return rows


def _without_truncation(request: _LiveRequest) -> _LiveRequest:
    return replace(request, params=replace(request.params, top_p=1.0, top_k=0, min_p=0.0))


def _arguments(live: list[_LiveRequest]) -> tuple[list[SamplingParams], list[list[int]], list[list[int]]]:
    return [r.params for r in live], [r.prompt_ids for r in live], [r.output_ids for r in live]


_NEUTRAL = _LiveRequest(SamplingParams(), [], [])
