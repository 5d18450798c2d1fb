"""Turns raw logits rows into columns of the table `tokens`, for every backend that sees whole rows.

Shapes: N rows of a batch, B rows of a slice, V vocabulary, T output tokens of a sequence, K candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tracekit.errors import ModelError
from tracekit.reduction import ProcessedRows, reduce_processed, reduce_raw
from tracekit.replay.backends.base import ScoredRows
from tracekit.replay.backends.base import Sequence as RecordedSequence
from tracekit.sampling import SamplingParams, processed_logits

SLICE_BYTES = 64 << 20
DEFAULT_TOP_K = 20

_CANDIDATES = ("top_token_ids", "top_logits")
_PROCESSED = tuple(field.name for field in fields(ProcessedRows))


def slice_rows(vocab_size: int) -> int:
    """Returns how many float32 rows of logits may exist at a time."""
    return max(1, SLICE_BYTES // (4 * vocab_size))


def score_rows(
    batch: Sequence[RecordedSequence],
    logits_of: Callable[[int, int], torch.Tensor],
    num_slice_rows: int,
    top_k: int | None = None,
) -> Iterator[ScoredRows]:
    """Reduces the logits that predict a batch's output tokens, in slices.

    Args:
        batch: the sequences.
        logits_of: gives the raw logits [B, V] of rows start to stop. Row 0 predicts the first output token of
            the first sequence, and rows follow output order, one sequence after the other.
        num_slice_rows: rows to ask for at a time.
        top_k: number of candidates to keep; None keeps as many as the parent has, or 20.

    Yields:
        One entry for each sequence; raw columns always, processed ones where the distribution is known,
        `parent_top_logits` where the parent has candidates.
    """
    rows = _BatchRows(batch)
    num_candidates = [_num_candidates(sequence, top_k) for sequence in batch]
    slices: list[dict[str, npt.NDArray[Any]]] = []
    for start in range(0, rows.num_rows, num_slice_rows):
        stop = min(start + num_slice_rows, rows.num_rows)
        logits_BV = logits_of(start, stop)
        rows.check_candidates(logits_BV.shape[1])
        token_ids_B = torch.from_numpy(rows.token_ids[start:stop]).to(logits_BV.device)
        candidates_BK = torch.from_numpy(rows.candidate_ids[start:stop]).to(logits_BV.device)
        columns = reduce_raw(logits_BV, token_ids_B, max(num_candidates)).columns()
        columns["parent_top_logits"] = logits_BV.gather(1, candidates_BK.clamp(min=0)).float().cpu().numpy()
        if rows.any_known:
            made = processed_logits(logits_BV, *rows.contexts(start, stop), token_ids_B)
            columns |= reduce_processed(made.logits_BV, token_ids_B, made.untruncated_logsumexp_B).columns()
        slices.append(columns)
    whole = {name: np.concatenate([columns[name] for columns in slices]) for name in slices[0]}
    for sequence, place, num_kept in zip(batch, rows.places, num_candidates, strict=True):
        scored: dict[str, Any] = {name: values[place] for name, values in whole.items()}
        for name in _CANDIDATES:
            scored[name] = scored[name][:, :num_kept]
        if not sequence.sampling_is_known:
            scored = {name: values for name, values in scored.items() if name not in _PROCESSED}
        scored["parent_top_logits"] = _lists(scored["parent_top_logits"], sequence.candidate_ids)
        scored["token_id"] = sequence.output_ids
        yield ScoredRows(sequence, scored)


class _BatchRows:
    """The rows of a batch, one after the other."""

    def __init__(self, batch: Sequence[RecordedSequence]) -> None:
        self._batch = batch
        self._params = [
            SamplingParams.from_row(sequence.request) if sequence.sampling_is_known else SamplingParams()
            for sequence in batch
        ]
        self.any_known = any(sequence.sampling_is_known for sequence in batch)
        lengths = [len(sequence.output_ids) for sequence in batch]
        self._starts = np.cumsum([0, *lengths])
        self.num_rows = int(self._starts[-1])
        self.places = [slice(start, stop) for start, stop in itertools.pairwise(self._starts.tolist())]
        self.token_ids = np.concatenate([sequence.output_ids for sequence in batch]).astype(np.int64)
        width = max(0 if sequence.candidate_ids is None else sequence.candidate_ids.shape[1] for sequence in batch)
        self.candidate_ids = np.full((self.num_rows, width), -1, np.int64)
        for sequence, place in zip(batch, self.places, strict=True):
            if sequence.candidate_ids is not None:
                self.candidate_ids[place, : sequence.candidate_ids.shape[1]] = sequence.candidate_ids

    def check_candidates(self, vocab_size: int) -> None:
        if self.candidate_ids.max(initial=-1) < vocab_size:
            return
        for sequence in self._batch:
            largest = -1 if sequence.candidate_ids is None else int(sequence.candidate_ids.max(initial=-1))
            if largest >= vocab_size:
                raise ModelError(
                    f"request '{sequence.request_id}' has token id {largest} among its candidates, but the model has "
                    f"a vocabulary of {vocab_size}; give the model that the trace was recorded with"
                )

    def contexts(
        self, start: int, stop: int
    ) -> tuple[list[SamplingParams], list[npt.NDArray[np.int32]], list[npt.NDArray[np.int32]]]:
        """Returns parameters, prompts and the output so far, of rows start to stop."""
        params, prompts, outputs = [], [], []
        for row in range(start, stop):
            index = int(np.searchsorted(self._starts, row, side="right")) - 1
            sequence = self._batch[index]
            params.append(self._params[index])
            prompts.append(sequence.prompt_ids)
            outputs.append(sequence.output_ids[: row - int(self._starts[index])])
        return params, prompts, outputs


def _num_candidates(sequence: RecordedSequence, top_k: int | None) -> int:
    if top_k is not None:
        return top_k
    return DEFAULT_TOP_K if sequence.candidate_ids is None else sequence.candidate_ids.shape[1]


def _lists(values_TK: npt.NDArray[np.float32], candidate_ids_TK: npt.NDArray[np.int32] | None) -> Any:
    """Returns the values that stand for candidates: null where a row has none."""
    if candidate_ids_TK is None:
        return None
    values_TK = values_TK[:, : candidate_ids_TK.shape[1]]
    given_TK = candidate_ids_TK >= 0
    if given_TK.all():
        return values_TK
    return [values[given].tolist() if given.any() else None for values, given in zip(values_TK, given_TK, strict=True)]
