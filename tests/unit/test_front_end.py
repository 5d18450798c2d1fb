"""The front end's hooks on stand-ins for vLLM's output processor: who is recorded, and what the worker is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import tracekit
from tracekit.record.engines import front_end
from tracekit.record.engines.http import Caller, _caller
from tracekit.record.labels import Labels
from tracekit.store import Trace


class Params(msgspec.Struct, omit_defaults=True):  # type: ignore[call-arg]
    """Enough of SamplingParams."""

    temperature: float = 1.0
    n: int = 1
    stop: list[str] = msgspec.field(default_factory=list)
    extra_args: dict[str, Any] | None = None


@dataclass
class Request:
    request_id: str
    sampling_params: Params | None
    prompt_token_ids: list[int] = field(default_factory=lambda: [1, 2, 3])
    external_req_id: str = "ext"
    arrival_time: float | None = 1.5
    lora_request: Any = None


class Processor:
    """Enough of OutputProcessor: it keeps requests until they end."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}

    def add_request(self, request: Request, prompt: str | None, parent: Any, index: int) -> None:  # noqa: ARG002
        self.request_states.setdefault(
            request.request_id,
            SimpleNamespace(request_id=request.request_id, detokenizer=SimpleNamespace(num_output_tokens=lambda: 3)),
        )


class FrontEnd:
    """An engine in a recording, already introduced to its recorder; `rows` ends the recording."""

    def __init__(self, trace: Path, **settings: Any) -> None:
        self._recording = tracekit.recording(trace, strict=True, **settings)
        config = self._recording.__enter__()
        self.trace = trace
        self.processor = Processor()
        recorder = front_end.recorder_of("i", "front_end", lambda: {"engine": "vllm"})
        self.processor._tracekit_recorder = recorder  # type: ignore[attr-defined]
        self.processor._tracekit_selection = front_end.Selection(config)  # type: ignore[attr-defined]

    def add(self, request: Request, prompt: str | None = "abc", parent: Any = None, index: int = 0) -> Any:
        """Returns what the worker will get as `extra_args`."""
        front_end._around_add_request(Processor.add_request, self.processor, request, prompt, parent, index)
        return request.sampling_params.extra_args if request.sampling_params else None

    def finish(self, request_id: str) -> None:
        state = self.processor.request_states.pop(request_id)
        front_end._around_make_request_output(lambda *_: None, state, [], None, "stop", None)

    def rows(self, table: str) -> dict[str, dict[str, Any]]:
        if self._recording is not None:
            self._recording.__exit__(None, None, None)
            self._recording = None  # type: ignore[assignment]
        return {row["request_id"]: row for row in Trace(self.trace).read(table).to_pylist()}


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Callable[..., FrontEnd]]:
    made: list[FrontEnd] = []

    def make(**settings: Any) -> FrontEnd:
        made.append(FrontEnd(tmp_path / "t", **settings))
        return made[0]

    yield make
    made[0].rows("requests")


def test_all_are_recorded_and_nothing_is_told_where_nothing_is_chosen(front: Callable[..., FrontEnd]) -> None:
    engine = front()
    given = {"tracekit_group_id": "g", "kv": 1}
    params = Params(extra_args=given)
    assert engine.add(Request("r0", params)) is given
    assert engine.add(Request("r1", Params())) is None
    engine.finish("r0")
    rows = engine.rows("requests")
    assert rows.keys() == {"r0", "r1"}
    assert (rows["r0"]["group_id"], rows["r0"]["external_id"], rows["r0"]["arrival_ns"]) == ("g", "ext", 1_500_000_000)
    assert rows["r0"]["sampling_params"] == '{"extra_args":{"kv":1}}'
    assert rows["r1"]["sampling_params"] == "{}"
    assert engine.rows("outcomes").keys() == {"r0"}


def test_the_worker_is_told_what_was_decided(front: Callable[..., FrontEnd]) -> None:
    engine = front(where="temperature > 0", first=2)
    shared = Params(temperature=0.0, extra_args={"kv": 1})
    told = [
        engine.add(Request("cold", shared)),
        engine.add(Request("r1", Params())),
        engine.add(Request("asked", Params(temperature=0.0, extra_args={"tracekit_record": True}))),
        engine.add(Request("r2", Params(extra_args={"kv": 2}))),
        engine.add(Request("late", Params())),
        engine.add(Request("refused", Params(extra_args={"tracekit": {"record": False}}))),
    ]
    assert told == [
        {"kv": 1, "tracekit_record": False},
        {"tracekit_record": True},
        {"tracekit_record": True},
        {"kv": 2, "tracekit_record": True},
        {"tracekit_record": False},
        {"tracekit": {"record": False}},
    ]
    assert shared.extra_args == {"kv": 1}, "the caller's own object was changed"
    for request_id in ("cold", "r1", "asked", "late", "refused"):
        engine.finish(request_id)
    assert engine.rows("requests").keys() == {"r1", "asked", "r2"}
    assert engine.rows("outcomes").keys() == {"r1", "asked"}
    assert engine.rows("requests")["r2"]["sampling_params"] == '{"extra_args":{"kv":2}}'


def test_samples_of_one_request_are_chosen_together(front: Callable[..., FrontEnd]) -> None:
    engine = front(first=2)
    told = {}
    for parent_id in ("a", "b", "c"):
        parent = SimpleNamespace(request_id=parent_id, external_req_id=f"ext-{parent_id}", sampling_params=Params(n=3))
        shared = Params()
        told[parent_id] = [
            engine.add(Request(f"{index}_{parent_id}", shared), parent=parent, index=index) for index in range(3)
        ]
    yes, no = {"tracekit_record": True}, {"tracekit_record": False}
    assert told == {"a": [yes] * 3, "b": [yes] * 3, "c": [no] * 3}
    rows = engine.rows("requests")
    assert rows.keys() == {f"{index}_{parent}" for parent in "ab" for index in range(3)}
    row = rows["2_b"]
    assert (row["external_id"], row["parent_request_id"], row["sample_index"], row["n"]) == ("ext-b", "b", 2, 3)


def test_headers_are_weaker_than_parameters(front: Callable[..., FrontEnd]) -> None:
    engine = front()
    headers = {"group_id": "header", "trajectory_id": "header"}
    token = _caller.set(Caller("mine", Labels(headers, refused=("label 'x' is odd",))))
    try:
        request = Request("r0", Params(extra_args={"tracekit_group_id": "body"}), external_req_id="cmpl-mine-0")
        engine.add(request)
    finally:
        _caller.reset(token)
    engine.add(Request("r1", Params(extra_args={"tracekit_turn": 1}), external_req_id="cmpl-mine-0"))
    rows = engine.rows("requests")
    assert (rows["r0"]["group_id"], rows["r0"]["trajectory_id"], rows["r0"]["external_id"]) == (
        "body",
        "header",
        "mine",
    )
    assert (rows["r1"]["trajectory_id"], rows["r1"]["external_id"]) == (None, "cmpl-mine-0")
    refused = [row for row in Trace(engine.trace).read("events").to_pylist() if row["kind"] == "label_refused"]
    assert [row["request_id"] for row in refused] == ["r0", "r1"]
    assert "label 'x' is odd" in refused[0]["attributes"]
    assert "no such label 'turn'" in refused[1]["attributes"]


def test_more_input_to_a_request_makes_no_second_row(front: Callable[..., FrontEnd]) -> None:
    engine = front(first=1)
    engine.add(Request("r0", Params()))
    engine.add(Request("r0", Params(), prompt_token_ids=[9]))
    rows = engine.rows("requests")
    assert rows["r0"]["prompt_token_ids"] == [1, 2, 3]
    assert Trace(engine.trace).num_rows("requests") == 1


def test_pooling_requests_are_none_of_ours(front: Callable[..., FrontEnd]) -> None:
    engine = front()
    engine.add(Request("r0", None))
    assert engine.rows("requests") == {}
