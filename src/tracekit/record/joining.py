"""Joins captures of consecutive steps into one, so that few rows at a time cost little more than many.

A reduction is some sixty calls into torch, however few rows it has, and after each the recorder's thread contends with
the engine's for the interpreter. Shape suffixes as in `capture.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tracekit.record.capture import Drawn, Ints, Steps, TokenCapture
from tracekit.record.unknown import UNKNOWN


def can_join(first: TokenCapture, second: TokenCapture) -> bool:
    """Whether the rows of two captures of one engine can be reduced as those of one."""
    return _kind(first) is not None and _kind(first) == _kind(second)


def num_logits_rows(capture: TokenCapture) -> int:
    """Returns how many rows of logits a capture keeps alive."""
    return 0 if capture.raw_LV is None else len(capture.raw_LV)


def _kind(capture: TokenCapture) -> tuple[object, ...] | None:
    """Returns what captures must have in common; None where it must be reduced by itself."""
    is_plain = capture.draft_index_R is None and not capture.is_prompt and isinstance(capture.position_R, np.ndarray)
    if capture.raw_LV is None or capture.masked_LV is not None or len(capture.drawn) > 1 or not is_plain:
        return None
    pieces = tuple((piece.truncated, piece.scaled_PV is None, piece.logits_PV.dtype) for piece in capture.drawn)
    if any(piece.rows_P is not None for piece in capture.drawn):
        return None
    return capture.raw_LV.dtype, capture.raw_LV.shape[1], capture.hidden_LH is None, capture.torch_softmax, pieces


def join(captures: Sequence[TokenCapture]) -> TokenCapture:
    """Returns one capture with the rows of all, in their order; on a device, work for its current stream."""
    if len(captures) == 1:
        return captures[0]
    first, last = captures[0], captures[-1]
    before_L = _offsets([len(_known(capture.raw_LV)) for capture in captures])
    before_S = _offsets([len(capture.token_ids_S) for capture in captures])
    return replace(
        first,
        steps=Steps(
            np.array([capture.step_id for capture in captures]),
            [capture.weights for capture in captures],
            np.array([capture.num_rows for capture in captures]),
        ),
        request_ids=list(itertools.chain.from_iterable(capture.request_ids for capture in captures)),
        logits_row_R=_cat(capture.logits_row_R + before for capture, before in zip(captures, before_L, strict=True)),
        sample_R=_cat(capture.sample_R + before for capture, before in zip(captures, before_S, strict=True)),
        batch_index_R=_cat(capture.batch_index_R for capture in captures),
        position_R=_cat(np.asarray(capture.position_R) for capture in captures),
        num_prompt_R=_cat(capture.num_prompt_R for capture in captures),
        kv_version_R=_versions(captures),
        token_ids_S=torch.cat([capture.token_ids_S for capture in captures]),
        raw_LV=torch.cat([_known(capture.raw_LV) for capture in captures]),
        drawn=tuple(map(_pieces, zip(*(capture.drawn for capture in captures), strict=True))),
        hidden_LH=None if first.hidden_LH is None else torch.cat([_known(capture.hidden_LH) for capture in captures]),
        reported_S=_reported(captures),
        ready=last.ready,
    )


def _known(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _offsets(lengths: list[int]) -> list[int]:
    return [0, *itertools.accumulate(lengths[:-1])]


def _cat(arrays: object) -> Ints:
    joined: Ints = np.concatenate(list(arrays))  # type: ignore[call-overload]
    return joined


def _pieces(pieces: tuple[Drawn, ...]) -> Drawn:
    scaled = None if pieces[0].scaled_PV is None else torch.cat([_known(piece.scaled_PV) for piece in pieces])
    return Drawn(torch.cat([piece.logits_PV for piece in pieces]), None, pieces[0].truncated, scaled)


def _versions(captures: Sequence[TokenCapture]) -> Ints | None:
    if all(capture.kv_version_R is None for capture in captures):
        return None
    versions = (capture.kv_version_R for capture in captures)
    counts = (capture.num_rows for capture in captures)
    return _cat(np.full(n, -1) if of_rows is None else of_rows for of_rows, n in zip(versions, counts, strict=True))


def _reported(captures: Sequence[TokenCapture]) -> Tensor | None:
    if all(capture.reported_S is None for capture in captures):
        return None
    pieces = [
        torch.full_like(capture.token_ids_S, UNKNOWN, dtype=torch.float32)
        if capture.reported_S is None
        else capture.reported_S.float()
        for capture in captures
    ]
    return torch.cat(pieces)
