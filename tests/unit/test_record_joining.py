"""Captures of several steps that are reduced together give the rows that they give one by one, also where one fails."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tracekit.record import RecordConfig
from tracekit.record.capture import Drawn, RequestSeen, RowsOf, TokenCapture, Weights
from tracekit.record.joining import can_join
from tracekit.record.rows import TokenReducer
from tracekit.record.selection import Choice
from tracekit.record.sink import Sink
from tracekit.record.unknown import UNKNOWN
from tracekit.store import Trace, create_trace

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
        position_R=np.full(count, 4 + step),
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


def _sink(path: Path, failed: Callable[[TokenCapture, Exception], list[RowsOf]]) -> Sink:
    config = RecordConfig(trace=str(path), top_k=5)
    create_trace(path, "record")
    sink = Sink(config, "run", "worker", failed)
    for name, params in REQUESTS.items():
        row = {"request_id": name, "prompt_token_ids": [1, 2, 3, 4], **params}
        sink.take(RequestSeen("requests", partial(dict, row)))
    return sink


def _rows(batches: list[tuple[str, dict[str, Any]]]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Returns the rows by table, request and position; what a batch has no column for is null, as in a trace."""
    found = {}
    for table, columns in batches:
        for row, request_id in enumerate(columns["request_id"]):
            values = {name: column[row] for name, column in columns.items() if not _is_null(column[row])}
            found[table, request_id, int(columns["position"][row])] = values
    return found


def _is_null(value: Any) -> bool:
    stands_for_null = np.isscalar(value) and not isinstance(value, str) and (value != value or value in (-1, UNKNOWN))
    return value is None or bool(stands_for_null)


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
        {"raw_LV": torch.zeros(5, VOCAB + 1, dtype=torch.bfloat16)},
        {"drawn": (Drawn(torch.zeros(5, VOCAB)),)},
        {"drawn": (Drawn(torch.zeros(2, VOCAB), np.array([0, 1])), Drawn(torch.zeros(2, VOCAB), np.array([2, 3])))},
    ],
)
def test_what_differs_is_not_joined(changes: dict[str, Any]) -> None:
    assert can_join(_capture(0), _capture(2))
    assert not can_join(_capture(0), _capture(2, **changes))


def test_one_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    captures = [_capture(step) for step in range(4)]
    captures[2] = replace(captures[2], logits_row_R=np.full(4, 1000))
    assert all(can_join(a, b) for a, b in itertools.pairwise(captures))
    failed: list[int] = []

    def note(capture: TokenCapture, _: Exception) -> list[RowsOf]:
        failed.append(capture.step_id)
        return []

    with _sink(tmp_path / "a.trace", note) as sink:
        for capture in captures:
            sink.take(capture)
    assert failed == [12]
    alone = _reducer()
    expected = _rows([batch for capture in captures[:2] for batch in alone.reduce(capture)])
    found = Trace(tmp_path / "a.trace").read("tokens").to_pylist()
    assert sorted(row["step_id"] for row in found) == [10] * 4 + [11] * 3 + [13] * 3
    for row in found:
        if row["step_id"] < 12:
            for name, value in expected["tokens", row["request_id"], row["position"]].items():
                np.testing.assert_array_equal(row[name], value, err_msg=name)
        # What a lost token would have changed is not known.
        depends = row["request_id"] == "penalised"
        assert (row["processed_logprob"] is None) == (depends and row["step_id"] == 13), row
        assert (row["processed_source"] is None) == (row["processed_logprob"] is None)


def test_tensors_are_not_kept_for_steps_without_tokens(tmp_path: Path) -> None:
    """Chunks of a long prompt sample nothing, and yet have logits; those must not pile up until the next flush."""
    with _sink(tmp_path / "a.trace", lambda *_: []) as sink:
        kept: list[weakref.ref[torch.Tensor]] = []
        for step in range(100):
            none = np.array([], np.int64)
            rows = dict.fromkeys(("logits_row_R", "sample_R", "batch_index_R", "position_R", "num_prompt_R"), none)
            capture = _capture(step, request_ids=[], kv_version_R=None, **rows)
            assert capture.raw_LV is not None
            kept.append(weakref.ref(capture.raw_LV))
            sink.take(capture)
            del capture
        assert not [tensor for tensor in kept if tensor() is not None]


def test_few_rows_of_logits_are_kept(tmp_path: Path) -> None:
    """A prompt's chunks may have many rows of logits for each token: the rows decide how long a capture waits."""
    with _sink(tmp_path / "a.trace", lambda *_: []) as sink:
        kept: list[weakref.ref[torch.Tensor]] = []
        for step in range(40):
            capture = _capture(step, raw_LV=torch.zeros(9, VOCAB, dtype=torch.bfloat16))
            assert capture.raw_LV is not None
            kept.append(weakref.ref(capture.raw_LV))
            sink.take(capture)
            del capture
            assert sum(tensor() is not None for tensor in kept) <= 3  # of 9 rows each
