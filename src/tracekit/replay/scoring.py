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
from tracekit.noise import draw
from tracekit.reduction import ProcessedRows, reduce_processed, reduce_raw
from tracekit.replay.backends.base import Kept, Rows
from tracekit.replay.backends.base import Sequence as RecordedSequence
from tracekit.replay.dtypes import dtype_name
from tracekit.sampling import SamplingParams, processed_logits

SLICE_BYTES = 16 << 20

_CANDIDATES = ("top_token_ids", "top_logits")
_PROCESSED = tuple(field.name for field in fields(ProcessedRows))


def slice_rows(vocab_size: int) -> int:
    """Returns how many float32 rows of logits may exist at a time."""
    return max(1, SLICE_BYTES // (4 * vocab_size))


def score_rows(
    batch: Sequence[RecordedSequence],
    logits_of: Callable[[int, int], torch.Tensor],
    vocab_size: int,
    kept: Kept,
    log_softmax_dtype: torch.dtype | None = None,
) -> Iterator[Rows]:
    """Reduces the logits that predict a batch's output tokens, in slices.

    Args:
        batch: the sequences.
        logits_of: gives the raw logits [B, V] of rows start to stop. Row 0 predicts the first output token of
            the first sequence, and rows follow output order, one sequence after the other.
        vocab_size: V.
        kept: what to keep of each token; hidden states are not made here.
        log_softmax_dtype: what logprobs are computed in; by default they are right to float32 rounding.

    Yields:
        Whole rows of logits as they come, where they are kept. Then `tokens` for each sequence: raw columns always,
        processed ones where the distribution is known, `parent_top_logits` where the parent has candidates.
    """
    rows = _BatchRows(batch)
    rows.check_candidates(vocab_size)
    num_candidates = [kept.num_candidates(sequence) for sequence in batch]
    num_slice_rows = slice_rows(vocab_size)
    # Made once: small arrays that outlive each slice would break up the memory that the next slice needs in one piece.
    whole: dict[str, npt.NDArray[Any]] = {}
    for start in range(0, rows.num_rows, num_slice_rows):
        stop = min(start + num_slice_rows, rows.num_rows)
        logits_BV = logits_of(start, stop)
        if kept.logits:
            yield from whole_rows(batch, "logits", logits_BV, start)
        token_ids_B = torch.from_numpy(rows.token_ids[start:stop]).to(logits_BV.device)
        candidates_BK = torch.from_numpy(rows.candidate_ids[start:stop]).to(logits_BV.device)
        columns = reduce_raw(logits_BV, token_ids_B, max(num_candidates)).columns()
        columns["parent_top_logits"] = logits_BV.gather(1, candidates_BK.clamp(min=0)).float().cpu().numpy()
        if rows.any_known:
            made = processed_logits(logits_BV, *rows.contexts(start, stop), token_ids_B)
            columns |= reduce_processed(made.logits_BV, token_ids_B, made.untruncated_logsumexp_B).columns()
            if kept.free == "coupled":
                columns["coupled_token_id"] = draw(made.logits_BV, *rows.draws(start, stop)).cpu().numpy()
        if log_softmax_dtype is not None:
            columns |= _rounded_logprobs(logits_BV, token_ids_B, log_softmax_dtype)
            if rows.any_known:
                rounded = _rounded_logprobs(made.logits_BV, token_ids_B, log_softmax_dtype)
                columns["processed_logprob"] = rounded["logprob"]
        for name, values in columns.items():
            if name not in whole:
                whole[name] = np.empty((rows.num_rows, *values.shape[1:]), values.dtype)
            whole[name][start:stop] = values
    for sequence, place, num_kept in zip(batch, rows.places, num_candidates, strict=True):
        scored: dict[str, Any] = {name: values[place] for name, values in whole.items()}
        for name in _CANDIDATES:
            scored[name] = scored[name][:, :num_kept]
        if not sequence.sampling_is_known:
            scored = {name: values for name, values in scored.items() if name not in _PROCESSED}
        if not sequence.draw_is_known:
            scored.pop("coupled_token_id", None)
        scored["parent_top_logits"] = _lists(scored["parent_top_logits"], sequence.candidate_ids)
        scored["token_id"] = sequence.output_ids
        yield Rows(sequence, scored)


def whole_rows(
    batch: Sequence[RecordedSequence], table: str, values_BX: torch.Tensor, start: int = 0
) -> Iterator[Rows]:
    """Yields rows of `hidden` or `logits`, exact copies.

    Args:
        batch: the sequences.
        table: where they go; their column has the same name.
        values_BX: consecutive rows of the batch, which are numbered as in `score_rows`.
        start: the number of the first.
    """
    dtype = dtype_name(values_BX.dtype)
    first, stop = 0, start + len(values_BX)
    for sequence in batch:
        begin, end = max(start, first), min(stop, first + len(sequence.output_ids))
        if begin < end:
            values = values_BX[begin - start : end - start].float().cpu().numpy()
            yield Rows(sequence, {table: values, "source_dtype": dtype}, table, begin - first)
        first += len(sequence.output_ids)


def _rounded_logprobs(
    logits_BV: torch.Tensor, token_ids_B: torch.Tensor, dtype: torch.dtype
) -> dict[str, npt.NDArray[Any]]:
    """Returns logprob and logsumexp as a program has them that computes log-softmax in a dtype of its own."""
    logits_BV = logits_BV.to(dtype)
    logprob_B = logits_BV.log_softmax(1).gather(1, token_ids_B.unsqueeze(1)).squeeze(1)
    return {"logprob": logprob_B.float().cpu().numpy(), "logsumexp": logits_BV.logsumexp(1).float().cpu().numpy()}


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

    def draws(self, start: int, stop: int) -> tuple[list[int | None], list[int]]:
        """Returns seeds and positions of rows start to stop; no seed where the most probable token is taken."""
        seeds: list[int | None] = []
        positions: list[int] = []
        for row in range(start, stop):
            index = int(np.searchsorted(self._starts, row, side="right")) - 1
            sequence = self._batch[index]
            seeds.append(None if self._params[index].is_greedy else sequence.request.get("seed"))
            positions.append(len(sequence.prompt_ids) + row - int(self._starts[index]))
        return seeds, positions


def _lists(values_TK: npt.NDArray[np.float32], candidate_ids_TK: npt.NDArray[np.int32] | None) -> Any:
    """Returns the values that stand for candidates: null where a row has none."""
    if candidate_ids_TK is None:
        return None
    values_TK = values_TK[:, : candidate_ids_TK.shape[1]]
    given_TK = candidate_ids_TK >= 0
    if given_TK.all():
        return values_TK
    return [values[given].tolist() if given.any() else None for values, given in zip(values_TK, given_TK, strict=True)]
