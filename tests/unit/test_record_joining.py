"""Captures of several steps that are reduced together give the rows that they give one by one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tracekit.record import RecordConfig
from tracekit.record.capture import Drawn, TokenCapture, Weights
from tracekit.record.joining import can_join
from tracekit.record.rows import TokenReducer
from tracekit.record.selection import Choice

VOCAB = 300
REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 1.0},
    "greedy": {"temperature": 0.0},
    "truncated": {"temperature": 0.8, "top_p": 0.9, "top_k": 40},
    # Its distribution depends on the tokens of the steps before.
    "penalised": {"temperature": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
}


def _capture(step: int, **changes: Any) -> TokenCapture:
    random = torch.Generator().manual_seed(step)
    request_ids = list(REQUESTS)[step % 2 :]
    count = len(request_ids)
    raw = (torch.randn(count + 1, VOCAB, generator=random) * 4).bfloat16()
    rows = np.arange(count)
    capture = TokenCapture(
        step_id=10 + step,
        request_ids=request_ids,
        # The last row of the logits is of a request whose sample was thrown away.
        logits_row_R=rows,
        sample_R=rows,
        batch_index_R=rows,
        position_R=np.full(count, 5 + step),
        num_prompt_R=np.full(count, 4),
        token_ids_S=torch.randint(0, VOCAB, (count + 1,), generator=random),
        raw_LV=raw,
        hidden_LH=torch.randn(count + 1, 8, generator=random).bfloat16(),
        weights=Weights(step // 3, f"policy-{step // 3}", step == 3),
        kv_version_R=np.zeros(count, np.int32) if step % 3 else None,
        reported_S=torch.randn(count + 1, generator=random) if step % 4 else None,
    )
    return replace(capture, **changes)


def _reducer() -> TokenReducer:
    reducer = TokenReducer(RecordConfig(trace="unused", top_k=5))
    for name, params in REQUESTS.items():
        reducer.add_request(
            {"request_id": name, "prompt_token_ids": [1, 2, 3, 4], **params}, (), Choice(True, True, True)
        )
    return reducer


def _rows(batches: list[tuple[str, dict[str, Any]]]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Returns the rows by table, request and position; what a batch has no column for is null, as in a trace."""
    found = {}
    for table, columns in batches:
        for row, request_id in enumerate(columns["request_id"]):
            values = {name: column[row] for name, column in columns.items() if not _is_null(column[row])}
            found[table, request_id, int(columns["position"][row])] = values
    return found


def _is_null(value: Any) -> bool:
    return value is None or (np.isscalar(value) and not isinstance(value, str) and (value != value or value == -1))


def _drawn(capture: TokenCapture, *, scaled: bool) -> tuple[Drawn, ...]:
    assert capture.raw_LV is not None
    whole = capture.raw_LV.float() / 0.8
    edge = whole.topk(40, dim=1).values[:, -1:]
    return (Drawn(whole.masked_fill(whole < edge, -torch.inf), scaled_PV=whole if scaled else None),)


@pytest.mark.parametrize("shown", ["nothing", "drawn", "drawn and scaled"])
def test_rows_are_those_of_each_step_alone(shown: str) -> None:
    captures = [_capture(step) for step in range(7)]
    if shown != "nothing":
        captures = [replace(c, drawn=_drawn(c, scaled=shown.endswith("scaled"))) for c in captures]
    assert all(can_join(a, b) for a, b in itertools.pairwise(captures))
    alone, together = _reducer(), _reducer()
    expected = _rows([batch for capture in captures for batch in alone.reduce(capture)])
    found = _rows(together.reduce(*captures))
    assert len(expected) == 3 * sum(len(capture.request_ids) for capture in captures)
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        assert found[key].keys() == row.keys(), key
        for name, value in row.items():
            np.testing.assert_array_equal(found[key][name], value, err_msg=f"{key} {name}")


@pytest.mark.parametrize(
    "changes",
    [
        {"is_prompt": True},
        {"raw_LV": None},
        {"masked_LV": torch.zeros(5, VOCAB)},
        {"draft_index_R": np.zeros(4, np.int64)},
        {"position_R": torch.zeros(5)},
        {"hidden_LH": None},
        {"torch_softmax": False},
        {"raw_LV": torch.zeros(5, VOCAB)},
        {"drawn": (Drawn(torch.zeros(5, VOCAB)),)},
        {"drawn": (Drawn(torch.zeros(2, VOCAB), np.array([0, 1])), Drawn(torch.zeros(2, VOCAB), np.array([2, 3])))},
    ],
)
def test_what_differs_is_not_joined(changes: dict[str, Any]) -> None:
    assert can_join(_capture(0), _capture(2))
    assert not can_join(_capture(0), _capture(2, **changes))
