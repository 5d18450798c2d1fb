"""The path through a GPU's streams gives the same rows as host memory, and never reads too early.

The streams here are a fake: there is no GPU. They keep their order, and hold a tensor's values back until the
recorder has waited for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tracekit.record import RecordConfig, device
from tracekit.record.capture import Drawn, TokenCapture, Weights
from tracekit.record.device import HostDevice, SideStreamDevice, packed
from tracekit.record.rows import TokenReducer
from tracekit.record.selection import Choice

VOCAB = 700


@dataclass
class FakeStreams:
    """Streams that only keep order.

    Attributes:
        late: tensors with the values that they get once their event was waited for.
        calls: what was asked for, in order.
    """

    late: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    num_pinned: int = 0

    def record(self) -> str:
        self.calls.append("record")
        return "event"

    @contextlib.contextmanager
    def on_side_stream(self) -> Iterator[None]:
        self.calls.append("enter")
        yield
        self.calls.append("leave")

    def wait_for(self, event: str) -> None:
        assert event == "event"
        self.calls.append("wait")
        for tensor, values in self.late:
            tensor.copy_(values)

    def finish(self) -> None:
        self.calls.append("finish")

    def pinned(self, num_bytes: int) -> Tensor:
        self.num_pinned += 1
        return torch.full((num_bytes,), 255, dtype=torch.uint8)

    def upload(self, tensor: Tensor) -> Tensor:
        return tensor.clone()


def _capture(seed: int, *, is_prompt: bool = False, drafts: bool = False) -> TokenCapture:
    random = torch.Generator().manual_seed(seed)
    raw = (torch.randn(6, VOCAB, generator=random) * 3).bfloat16()
    drawn = raw.float() / 0.7
    drawn[:, ::3] = -torch.inf
    ids = torch.randint(1, VOCAB // 3, (6,), generator=random) * 3 + 1
    rows = np.arange(6)
    if drafts:
        ids[2] = -1
    return TokenCapture(
        step_id=seed,
        request_ids=["a", "a", "a", "b", "c", "d"] if drafts else list("abcdef"),
        logits_row_R=rows,
        sample_R=rows,
        batch_index_R=rows,
        position_R=torch.arange(10, 16) if drafts else rows + 10,
        num_prompt_R=np.full(6, 4),
        token_ids_S=ids,
        raw_LV=raw,
        drawn=() if is_prompt else (Drawn(drawn[:2], np.array([1, 4])), Drawn(drawn[2:], np.array([0, 2, 3, 5]))),
        hidden_LH=torch.randn(6, 16, generator=random).half(),
        reported_S=torch.randn(6, generator=random),
        draft_index_R=np.array([0, 1, 2, -1, -1, -1]) if drafts else None,
        weights=Weights(3, "three", False),
        is_prompt=is_prompt,
        ready="event",
    )


def _rows(capture: TokenCapture, top_k: int = 5) -> dict[str, dict[str, Any]]:
    reducer = TokenReducer(RecordConfig(trace="unused", top_k=top_k, logits=True))
    for request_id in "abcdef":
        row = {"request_id": request_id, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2}
        reducer.add_request(row | {"prompt_token_ids": [1, 2, 3, 4]}, (), Choice(True, True, True))
    with torch.inference_mode():
        return dict(reducer.reduce(capture))


@pytest.mark.parametrize("how", [{}, {"is_prompt": True}, {"drafts": True}])
def test_side_stream_and_host_give_the_same_rows(how: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    capture = _capture(1, **how)
    monkeypatch.setitem(device._devices, torch.device("cpu"), HostDevice())
    expected = _rows(capture)
    assert expected.keys() == {"tokens", "hidden", "logits"}

    streams = FakeStreams()
    monkeypatch.setitem(device._devices, torch.device("cpu"), SideStreamDevice(streams))
    raw, ids = capture.raw_LV, capture.token_ids_S
    assert raw is not None
    late = replace(capture, raw_LV=torch.full_like(raw, torch.nan), token_ids_S=torch.full_like(ids, -1))
    streams.late = [(late.raw_LV, raw), (late.token_ids_S, ids)]  # type: ignore[list-item]
    found = _rows(late)
    for table, columns in expected.items():
        assert found[table].keys() == columns.keys()
        for name, values in columns.items():
            if isinstance(values, list):
                assert found[table][name] == values, (table, name)
            else:
                np.testing.assert_allclose(found[table][name], values, rtol=1e-6, atol=1e-6, err_msg=name)
    # Nothing runs before the engine's work is waited for, and nothing is left running at the end.
    assert streams.calls[:2] == ["enter", "wait"]
    assert streams.calls[-2:] == ["finish", "leave"]


def test_marks_are_taken_on_the_engines_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = FakeStreams()
    monkeypatch.setitem(device._devices, torch.device("cpu"), SideStreamDevice(streams))
    assert device.mark(torch.zeros(1)) == "event"
    assert streams.calls == ["record"]


def test_a_failure_still_waits_for_what_was_begun() -> None:
    streams = FakeStreams()
    with pytest.raises(ZeroDivisionError), SideStreamDevice(streams).after("event"):
        raise ZeroDivisionError
    assert streams.calls[-1] == "finish"


def test_pinned_memory_is_used_again() -> None:
    streams = FakeStreams()
    side = SideStreamDevice(streams)
    first = side.to_host({"a": torch.arange(5), "b": torch.ones(3, dtype=torch.bool)})
    second = side.to_host({"a": torch.arange(5, 10), "b": torch.zeros(3, dtype=torch.bool)})
    assert first["a"].tolist() == [0, 1, 2, 3, 4]
    assert first["b"].tolist() == [True] * 3
    assert second["a"].tolist() == [5, 6, 7, 8, 9]
    assert streams.num_pinned == 1
    side.to_host({"large": torch.zeros(1000)})
    assert streams.num_pinned == 2
    assert streams.calls == ["finish"] * 3


def test_packed_buffers_do_not_overlap() -> None:
    offsets, size = packed({"a": 1, "b": 16, "c": 17, "d": 0, "e": 3})
    assert offsets == {"a": 0, "b": 16, "c": 32, "d": 64, "e": 64}
    assert size == 80
