"""Turns captured tokens into rows of the tables `tokens`, `hidden` and `logits`, on the recorder's thread.

Shape suffixes: R rows that count, S rows of one slice, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracekit.placement import widened
from tracekit.record.capture import Columns, Drawn, Steps, TokenCapture
from tracekit.record.config import RecordConfig
from tracekit.record.device import Arrays, Device, device_of
from tracekit.record.drawn import LiveRequest, Slice, take_rows
from tracekit.record.forced import Forced, padded_candidates
from tracekit.record.joining import join
from tracekit.record.selection import Choice, Selection
from tracekit.reduction import ProcessedRows, RawRows, concat_rows, reduce_raw
from tracekit.sampling import SamplingParams

Batch = tuple[str, dict[str, Any]]


# Scratch memory that the reductions leave alone: a slice's raw rows are read by several.
_RAW_SLOT = 8


class _Chosen(NamedTuple):
    """Rows that count, in the order they are reduced: those of one piece of the distribution side by side."""

    rows_R: npt.NDArray[np.int64]  # places in the capture's arrays
    piece_R: npt.NDArray[np.int64]  # which piece of `drawn`; -1 where none
    piece_row_R: npt.NDArray[np.int64]
    token_ids_R: npt.NDArray[np.int64]


class TokenReducer:
    """Reduces captures; keeps, for each live request, what its processed distribution depends on.

    Attributes:
        num_dropped: tokens so far whose figures were dropped, for want of room in the queue.
    """

    def __init__(self, config: RecordConfig) -> None:
        self._top_k = config.top_k
        # What is kept of a request that was never announced.
        self._unknown = Selection(config).unknown
        self._live: dict[str, LiveRequest] = {}
        self._any_forced = self._any_draws = False
        self.num_dropped = 0

    def add_request(
        self, row: Columns, output_token_ids: tuple[int, ...], choice: Choice, forced: Forced | None = None
    ) -> None:
        """Takes note of a request from its `requests` row, of what is kept of it, and of tokens it is given."""
        self._any_forced |= forced is not None
        self._any_draws |= forced is not None and forced.draw is not None
        self._live[row["request_id"]] = LiveRequest(
            SamplingParams.from_row(row),
            list(row.get("prompt_token_ids") or ()),
            list(output_token_ids),
            choice,
            forced,
        )

    def drop_request(self, request_id: str) -> None:
        self._live.pop(request_id, None)

    def slice_rows(self, capture: TokenCapture) -> int:
        """Returns how many rows are reduced at once; fewer cost nearly as much."""
        if capture.raw_LV is None:
            return 1
        return max(1, device_of(capture.raw_LV).slice_bytes // (4 * capture.raw_LV.shape[1]))

    def reduce(self, *captures: TokenCapture) -> list[Batch]:
        """Returns (table, columns) of what captures yield that can be joined; nothing where no row became a token."""
        device = device_of(captures[0].token_ids_S)
        with device.after(captures[-1].ready):
            capture = join(captures)
            if not capture.request_ids:
                return []
            small = {"ids": capture.token_ids_S.long()}
            if capture.reported_S is not None:
                small["reported"] = capture.reported_S.float()
            if isinstance(capture.position_R, Tensor):
                small["position"] = capture.position_R
            host = device.to_host(small)
            chosen = _chosen(capture, host["ids"], self._kept(capture.request_ids, "record"))
            if not len(chosen.rows_R):
                return []
            request_ids = [capture.request_ids[row] for row in chosen.rows_R]
            keys = _keys(capture, chosen, request_ids, host.get("position"))
            if capture.is_prompt:
                live = self._within_prompts(request_ids, keys["position"])
            else:
                live = self._as_of(request_ids, chosen, keys["output_index"])
            is_forced_R, wanted_RK = self._given(request_ids, keys["position"])
            figures = (
                None
                if capture.raw_LV is None
                else self._figures(capture, chosen, live, wanted_RK, keys["position"], device)
            )
            batches: list[Batch] = []
            if figures is not None:
                known = _of_tokens(capture, chosen, host) | {"forced": is_forced_R}
                batches.append(("tokens", keys | known | figures))
                batches += self._whole_rows(capture, chosen, keys, device)
            # Last: where anything failed, the same tokens may come once more.
            self._extend_histories(capture, request_ids, chosen)
            if figures is None:
                self.num_dropped += len(request_ids)
            return batches

    def _figures(
        self,
        capture: TokenCapture,
        chosen: _Chosen,
        live: list[LiveRequest | None],
        wanted_RK: npt.NDArray[np.int64],
        position_R: npt.NDArray[np.int32],
        device: Device,
    ) -> dict[str, Any]:
        assert capture.raw_LV is not None
        has_processed = not capture.is_prompt or any(live)
        wanted: list[Tensor] = []
        drawn: list[Tensor] = []
        raw: list[RawRows] = []
        processed: list[ProcessedRows] = []
        sources: list[str | None] = []
        logits_row_R = capture.logits_row_R[chosen.rows_R]
        for part, piece in _slices(chosen.piece_R, capture.drawn, self.slice_rows(capture)):
            rows_S = logits_row_R[part]
            ids_S = device.upload(chosen.token_ids_R[part])
            raw_SV = widened(take_rows(capture.raw_LV, rows_S, device), _RAW_SLOT)
            raw.append(reduce_raw(raw_SV, ids_S, self._top_k, as_engine=capture.torch_softmax))
            if wanted_RK.shape[1]:
                wanted.append(_logits_at(raw_SV, device.upload(wanted_RK[part])))
            if not has_processed:
                continue
            masked_SV = raw_SV if capture.masked_LV is None else take_rows(capture.masked_LV, rows_S, device).float()
            seen_SV = None if piece is None else take_rows(piece.logits_PV, chosen.piece_row_R[part], device).float()
            is_masked = capture.masked_LV is not None
            slice_ = Slice(masked_SV, ids_S, live[part], raw[-1], device, capture.torch_softmax, is_masked)
            is_engines = piece is not None and piece.truncated
            scaled_SV = None
            if piece is not None and piece.scaled_PV is not None:
                scaled_SV = take_rows(piece.scaled_PV, chosen.piece_row_R[part], device).float()
            processed.append(slice_.reduce(seen_SV, scaled_SV, is_truncated=is_engines))
            if self._any_draws:
                drawn.append(slice_.draw(seen_SV, position_R[part].tolist(), is_truncated=is_engines))
            source = "engine" if is_engines else "recomputed"
            sources += [source if is_engines or request is not None else None for request in live[part]]
        columns: dict[str, Any] = device.to_host(_tensors(concat_rows(raw)))
        if wanted:
            columns |= device.to_host({"parent_top_logits": torch.cat(wanted)})
        if processed:
            columns |= device.to_host(_tensors(concat_rows(processed))) | {"processed_source": sources}
        if drawn:
            columns |= device.to_host({"coupled_token_id": torch.cat(drawn)})
        return columns

    def _whole_rows(self, capture: TokenCapture, chosen: _Chosen, keys: Columns, device: Device) -> Iterator[Batch]:
        for table, tensor_LX in (("hidden", capture.hidden_LH), ("logits", capture.raw_LV)):
            places = np.flatnonzero(self._kept(keys["request_id"], table))
            if tensor_LX is None or not len(places):
                continue
            rows_R = capture.logits_row_R[chosen.rows_R[places]]
            rows = device.to_host({table: take_rows(tensor_LX, rows_R, device).float()})
            request_ids = [keys["request_id"][place] for place in places]
            of_rows = {name: keys[name][places] for name in ("output_index", "position")}
            dtype = str(tensor_LX.dtype).removeprefix("torch.")
            yield table, {"request_id": request_ids} | of_rows | rows | {"source_dtype": [dtype] * len(places)}

    def _kept(self, request_ids: list[str], what: str) -> npt.NDArray[np.bool_]:
        """Returns of which rows something is kept: 'record' for anything at all, 'hidden' or 'logits'."""
        choices = [self._unknown if (live := self._live.get(i)) is None else live.choice for i in request_ids]
        return np.array([getattr(choice, what) for choice in choices], bool)

    def _within_prompts(self, request_ids: list[str], position_R: npt.NDArray[np.int32]) -> list[LiveRequest | None]:
        """Returns each row's request where its token is given with the prompt, as if it was to be sampled."""
        found = [self._live.get(request_id) for request_id in request_ids]
        return [
            None if request is None else request.before(position)
            for request, position in zip(found, position_R.tolist(), strict=True)
        ]

    def _given(
        self, request_ids: list[str], position_R: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Returns which tokens were given by a replay, and the candidates [R, K] whose logits it wants to know.

        Candidates are -1 where a row has fewer than K.
        """
        if not self._any_forced:
            return np.zeros(len(request_ids), bool), np.empty((len(request_ids), 0), np.int64)
        is_forced, candidates = [], []
        for request_id, position in zip(request_ids, position_R.tolist(), strict=True):
            forced = None if (request := self._live.get(request_id)) is None else request.forced
            is_forced.append(forced is not None and forced.token_at(position) is not None)
            candidates.append(np.empty(0, np.int64) if forced is None else forced.candidates_at(position))
        return np.array(is_forced, bool), padded_candidates(candidates)

    def _as_of(
        self, request_ids: list[str], chosen: _Chosen, output_index_R: npt.NDArray[np.int32]
    ) -> list[LiveRequest | None]:
        """Returns each row's request as it stood before that row's token; None where that is not known."""
        earlier: dict[str, list[int]] = {}
        found: list[LiveRequest | None] = [None] * len(request_ids)
        for place, request_id, token_id in _in_time(request_ids, chosen):
            request = self._live.get(request_id)
            if request is not None and request.params.depends_on_output:
                before = earlier.setdefault(request_id, [])
                if before:
                    request = replace(request, output_ids=request.output_ids + before)
                before.append(token_id)
                if len(request.output_ids) != output_index_R[place]:
                    request = None  # tokens in between were lost
            found[place] = request
        return found

    def _extend_histories(self, capture: TokenCapture, request_ids: list[str], chosen: _Chosen) -> None:
        if capture.is_prompt:
            return
        for _, request_id, token_id in _in_time(request_ids, chosen):
            request = self._live.get(request_id)
            if request is not None and request.params.depends_on_output:
                request.output_ids.append(token_id)


def _in_time(request_ids: list[str], chosen: _Chosen) -> Iterator[tuple[int, str, int]]:
    """Yields (place, request, token) of rows in the order in which they were sampled.

    They are reduced in another one: a step's accepted drafts and the token after them are of two pieces.
    """
    for place in np.argsort(chosen.rows_R, kind="stable").tolist():
        yield place, request_ids[place], int(chosen.token_ids_R[place])


def _logits_at(raw_SV: Tensor, ids_SK: Tensor) -> Tensor:
    """Returns logits [S, K]; NaN where there is no id."""
    return raw_SV.gather(1, ids_SK.clamp(min=0)).masked_fill_(ids_SK < 0, torch.nan)


def _chosen(capture: TokenCapture, token_ids_S: npt.NDArray[np.int64], is_kept_R: npt.NDArray[np.bool_]) -> _Chosen:
    """Drops rejected drafts and what is not recorded, and puts the rows of each piece side by side."""
    token_ids_R = token_ids_S[capture.sample_R]
    piece_R = np.full(len(token_ids_R), -1, np.int64)
    piece_row_R = np.zeros(len(token_ids_R), np.int64)
    for index, piece in enumerate(capture.drawn):
        if piece.rows_P is None:
            piece_R[:], piece_row_R[:] = index, capture.logits_row_R
        else:
            place_of = {int(row): place for place, row in enumerate(piece.rows_P)}
            places = np.array([place_of.get(int(row), -1) for row in capture.logits_row_R], np.int64)
            piece_R[places >= 0], piece_row_R[places >= 0] = index, places[places >= 0]
    rows_R = np.flatnonzero((token_ids_R >= 0) & is_kept_R)
    if len(capture.drawn) > 1:
        rows_R = rows_R[np.argsort(piece_R[rows_R], kind="stable")]
    return _Chosen(rows_R, piece_R[rows_R], piece_row_R[rows_R], token_ids_R[rows_R])


def _slices(
    piece_R: npt.NDArray[np.int64], drawn: tuple[Drawn, ...], num_slice: int
) -> Iterator[tuple[slice, Drawn | None]]:
    """Yields runs of rows of one piece, none longer than `num_slice`."""
    bounds = [0, *(np.flatnonzero(np.diff(piece_R)) + 1).tolist(), len(piece_R)]
    for first, end in itertools.pairwise(bounds):
        index = int(piece_R[first])
        for start in range(first, end, num_slice):
            yield slice(start, min(start + num_slice, end)), drawn[index] if index >= 0 else None


def _keys(
    capture: TokenCapture, chosen: _Chosen, request_ids: list[str], position: npt.NDArray[Any] | None
) -> dict[str, Any]:
    rows_R = chosen.rows_R
    if position is None:
        position_R = np.asarray(capture.position_R)[rows_R].astype(np.int32)
    else:
        position_R = position[capture.logits_row_R[rows_R]].astype(np.int32)
    if capture.is_prompt:
        output_index_R = np.full(len(rows_R), -1, np.int32)  # null, see `buffer`
    else:
        output_index_R = position_R - capture.num_prompt_R[rows_R].astype(np.int32)
    return {"request_id": request_ids, "output_index": output_index_R, "position": position_R}


def _of_tokens(capture: TokenCapture, chosen: _Chosen, host: Arrays) -> dict[str, Any]:
    """Returns the columns that need no logits."""
    rows_R, count = chosen.rows_R, len(chosen.rows_R)
    steps = capture.steps or Steps(np.array([capture.step_id]), [capture.weights], np.array([capture.num_rows]))
    columns: dict[str, Any] = {
        "batch_index": capture.batch_index_R[rows_R].astype(np.int32),
        "step_id": np.repeat(steps.ids, steps.num_rows)[rows_R],
        "token_id": chosen.token_ids_R.astype(np.int32),
        "is_prompt": np.full(count, capture.is_prompt),
    }
    if "reported" in host:
        columns["reported_logprob"] = host["reported"][capture.sample_R[rows_R]]
    for name, values_R in (("draft_index", capture.draft_index_R), ("kv_weight_version_min", capture.kv_version_R)):
        if values_R is not None:
            columns[name] = values_R[rows_R].astype(np.int32)
    if any(weights.version is not None for weights in steps.weights):
        # Negative where it is null, see `buffer`.
        known = [-1 if weights.version is None else weights.version for weights in steps.weights]
        place_R = np.repeat(np.arange(len(known)), steps.num_rows)[rows_R].tolist()
        columns["weight_version"] = np.array(known, np.int32)[place_R]
        columns["weight_label"] = [steps.weights[place].label for place in place_R]
        columns["weights_partial"] = [steps.weights[place].partial for place in place_R]
    return columns


def _tensors(rows: RawRows | ProcessedRows) -> dict[str, Tensor]:
    return {name: getattr(rows, name) for name in rows.__dataclass_fields__}
