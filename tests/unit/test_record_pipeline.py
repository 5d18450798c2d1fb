"""The recorder from captures to rows, without an engine: what is written, dropped, and survived."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reference
from tracekit.errors import RecorderError
from tracekit.record import RecordConfig
from tracekit.record.buffer import BatchBuffer
from tracekit.record.capture import Drawn, RequestGone, RequestSeen, RowsOf, TokenCapture, known_row
from tracekit.record.control import stop_workers
from tracekit.record.engines.hook import Hook
from tracekit.record.pipeline import Recorder
from tracekit.record.thread import hurry, settle_thread
from tracekit.record.unknown import UNKNOWN
from tracekit.store import Trace, create_trace

VOCAB = 300


@pytest.fixture
def trace_path(tmp_path: Path) -> Path:
    create_trace(tmp_path / "trace", "record")
    return tmp_path / "trace"


def _config(path: Path, **settings: Any) -> RecordConfig:
    return RecordConfig(trace=str(path), session="s", flush_seconds=0.05, **settings)


def _recorder(path: Path, **settings: Any) -> Recorder:
    return Recorder(_config(path, **settings), "s-engine", "worker", lambda: {"engine": "vllm"})


def _request(request_id: str, **columns: Any) -> RequestSeen:
    row = {"request_id": request_id, "prompt_token_ids": [1, 2, 3], "temperature": 1.0, **columns}
    return RequestSeen("requests", lambda: row)


def _step(step_id: int, request_ids: list[str], raw: torch.Tensor, **more: Any) -> tuple[RowsOf, TokenCapture]:
    """A step's row and its tokens: one for each row, unless `rows` says which rows count."""
    rows = more.pop("rows", np.arange(len(request_ids)))
    row = {"step_id": step_id, "num_requests": len(raw), "started_ns": 1}
    capture = TokenCapture(
        step_id=step_id,
        request_ids=request_ids,
        logits_row_R=rows,
        sample_R=rows,
        batch_index_R=rows,
        position_R=more.pop("positions", np.full(len(rows), step_id + 3)),
        num_prompt_R=np.full(len(rows), 3),
        token_ids_S=more.pop("token_ids", torch.arange(len(raw))),
        raw_LV=raw,
        **more,
    )
    return known_row("steps", row), capture


def _put(recorder: Recorder, *args: Any, **more: Any) -> None:
    for item in _step(*args, **more):
        recorder.put(item)


def _raw(num_rows: int, seed: int) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def _logprob(row: torch.Tensor, token: int) -> float:
    wide = row.double().numpy()
    return float(wide[token] - np.log(np.exp(wide - wide.max()).sum()) - wide.max())


def test_rows_are_those_of_the_captures(trace_path: Path) -> None:
    recorder = _recorder(trace_path, top_k=4)
    raws = [_raw(3, seed) for seed in range(20)]
    recorder.put(_request("a"))
    recorder.put(_request("b"))
    for step_id, raw in enumerate(raws):
        # Row 1 is a partial prefill: sampled by the engine, and none of ours.
        _put(recorder, step_id, ["a", "b"], raw, rows=np.array([0, 2]), drawn=(Drawn(raw),))
    recorder.close()
    rows = Trace(trace_path).read("tokens").to_pylist()
    assert len(rows) == 40
    for row in rows:
        batch_index = {"a": 0, "b": 2}[row["request_id"]]
        raw = raws[row["step_id"]][batch_index]
        assert row["token_id"] == row["batch_index"] == batch_index
        assert (row["output_index"], row["position"]) == (row["step_id"], row["step_id"] + 3)
        assert abs(row["logprob"] - _logprob(raw, batch_index)) < 1e-5
        assert row["processed_source"] == "engine"
        assert row["kept_mass"] == 1.0
        assert row["reported_logprob"] is None
        assert len(row["top_logits"]) == 4
        assert (row["forced"], row["is_prompt"]) == (False, False)
    assert Trace(trace_path).num_rows("steps") == 20
    assert not list((trace_path / "journal").rglob("*.zst"))


def test_processed_values_are_recomputed_where_the_engine_shows_none(trace_path: Path) -> None:
    recorder = _recorder(trace_path)
    raw = _raw(2, 1)
    recorder.put(_request("hot", temperature=2.0))
    recorder.put(_request("top", temperature=1.0, top_k=5))
    tokens = torch.tensor([7, int(raw[1].argmax())])
    _put(recorder, 0, ["hot", "top"], raw, token_ids=tokens)
    _put(recorder, 1, ["unknown"], raw[:1])
    recorder.close()
    hot, top, unknown = sorted(Trace(trace_path).read("tokens").to_pylist(), key=lambda row: row["request_id"])
    assert {row["processed_source"] for row in (hot, top)} == {"recomputed"}
    assert abs(hot["processed_logprob"] - _logprob(raw[0] / 2, 7)) < 1e-5
    assert (hot["kept_count"], hot["kept_mass"]) == (VOCAB, 1.0)
    best = np.sort(np.exp(raw[1].double().numpy()))[-5:]
    assert top["kept_count"] == 5
    assert abs(top["kept_mass"] - best.sum() / np.exp(raw[1].double().numpy()).sum()) < 1e-6
    assert abs(top["processed_logprob"] - np.log(best[-1] / best.sum())) < 1e-5
    # Of a request that was never announced the parameters are not known, so neither is its distribution.
    assert unknown["processed_logprob"] is None
    assert unknown["kept_mass"] is None


def test_a_fused_sampler_shows_the_distribution_before_truncation(trace_path: Path) -> None:
    """Its figures are those of the truncated tensor that another sampler would have shown."""
    kinds: dict[str, dict[str, Any]] = {
        "top-p": {"temperature": 0.8, "top_p": 0.7},
        "top-k": {"temperature": 1.3, "top_k": 9},
        "min-p": {"temperature": 0.8, "top_p": 0.9, "min_p": 0.02},
        "plain": {"temperature": 0.5},
        "greedy": {"temperature": 0.0, "top_p": 0.9},
    }
    raw = _raw(len(kinds), 5)
    recorder = _recorder(trace_path)
    given = raw.clone()
    for row, (request_id, kind) in zip(given, kinds.items(), strict=True):
        recorder.put(_request(request_id, **kind))
        row /= kind["temperature"] or 1.0
        if "min_p" in kind:
            probs = row.double().softmax(0)
            row[probs < kind["min_p"] * probs.max()] = -torch.inf
    tokens = raw.argmax(1)
    _put(recorder, 0, list(kinds), raw, token_ids=tokens, drawn=(Drawn(given, truncated=False),))
    recorder.close()
    rows = {row["request_id"]: row for row in Trace(trace_path).read("tokens").to_pylist()}
    for index, (request_id, kind) in enumerate(kinds.items()):
        logprobs, kept, mass = reference.processed(raw[index].numpy(), kind, [], [])
        found = rows[request_id]
        assert found["processed_source"] == "recomputed"
        assert abs(found["processed_logprob"] - logprobs[tokens[index]]) < 1e-5
        assert (found["kept_count"], found["kept_mass"]) == (kept, pytest.approx(mass, abs=1e-6))


def test_requests_that_are_not_selected_leave_no_rows(trace_path: Path) -> None:
    recorder = _recorder(trace_path, where="temperature > 0.5", logits=True)
    wishes: dict[str, Any] = {"asked": {"tracekit_record": True}, "unasked": {"tracekit_record": False}}
    for request_id, temperature in {"hot": 1.0, "cold": 0.1, "asked": 0.1, "unasked": 1.0, "small": 0.9}.items():
        row = {"request_id": request_id, "prompt_token_ids": [1, 2, 3], "temperature": temperature}
        extra_args = {"tracekit": {"logits": False}} if request_id == "small" else wishes.get(request_id)
        recorder.put(RequestSeen("requests", lambda row=row: row, extra_args=extra_args))
    raw = _raw(5, 3)
    _put(recorder, 0, ["hot", "cold", "asked", "unasked", "small"], raw)
    for request_id in ("hot", "cold", "asked", "unasked", "small"):
        recorder.put(known_row("outcomes", {"request_id": request_id, "num_preemptions": 0}))
        recorder.put(RequestGone(request_id))
    recorder.close()
    trace = Trace(trace_path)
    for table in ("requests", "outcomes", "tokens"):
        found = trace.read(table, ["request_id"]).column(0).to_pylist()
        assert sorted(found) == ["asked", "hot", "small"], table
    whole = {row["request_id"]: row["logits"] for row in trace.read("logits").to_pylist()}
    assert whole == {"hot": raw[0].tolist(), "asked": raw[2].tolist()}
    assert trace.num_rows("steps") == 1


def test_mass_before_truncation_comes_from_the_parameters(trace_path: Path) -> None:
    recorder = _recorder(trace_path)
    raw = _raw(1, 2)
    scaled = raw / 0.5
    kept = torch.where(scaled >= scaled.topk(3).values[:, -1:], scaled, -torch.inf)
    recorder.put(_request("a", temperature=0.5, top_k=3))
    _put(recorder, 0, ["a"], raw, token_ids=raw.argmax(1), drawn=(Drawn(kept),))
    recorder.close()
    (row,) = Trace(trace_path).read("tokens").to_pylist()
    weights = np.exp(scaled[0].double().numpy() - float(scaled.max()))
    mass = np.sort(weights)[-3:].sum() / weights.sum()
    assert row["kept_count"] == 3
    assert abs(row["kept_mass"] - mass) < 1e-6


def test_a_grammar_is_part_of_what_greedy_requests_are_drawn_from(trace_path: Path) -> None:
    """The engine draws greedily from the masked rows as they are, and these are not the raw ones."""
    recorder = _recorder(trace_path)
    raw = _raw(2, 6)
    masked = raw.clone()
    masked[0, 7:] = -torch.inf
    for request_id in ("json", "free"):
        recorder.put(_request(request_id, temperature=0.0))
    tokens = masked.argmax(1)
    _put(recorder, 0, ["json", "free"], raw, token_ids=tokens, masked_LV=masked, drawn=(Drawn(masked),))
    recorder.close()
    free, json_ = sorted(Trace(trace_path).read("tokens").to_pylist(), key=lambda row: row["request_id"])
    assert abs(json_["logprob"] - _logprob(raw[0], int(tokens[0]))) < 1e-5
    assert abs(json_["processed_logprob"] - _logprob(masked[0, :7], int(tokens[0]))) < 1e-5
    assert (json_["kept_count"], free["kept_count"]) == (7, VOCAB)
    assert free["processed_logprob"] == free["logprob"]
    assert (json_["kept_mass"], free["kept_mass"]) == (1.0, 1.0)


def test_penalties_see_the_tokens_generated_before(trace_path: Path) -> None:
    recorder = _recorder(trace_path)
    raw = _raw(1, 3)
    recorder.put(_request("a", presence_penalty=1.5))
    for step_id in range(3):
        _put(recorder, step_id, ["a"], raw, token_ids=torch.tensor([10 + step_id]))
    recorder.close()
    rows = sorted(Trace(trace_path).read("tokens").to_pylist(), key=lambda row: row["step_id"])
    for step_id, row in enumerate(rows):
        penalised = raw[0].clone()
        penalised[10 : 10 + step_id] -= 1.5
        assert abs(row["processed_logprob"] - _logprob(penalised, 10 + step_id)) < 1e-5


def test_accepted_drafts_are_of_what_came_before_each(trace_path: Path) -> None:
    """The engine shows the row after the drafts first, and then theirs."""
    recorder = _recorder(trace_path)
    tokens = [20, 21, 22, 23]
    raw = _raw(4, 8)
    penalised = raw.clone()
    for place in range(4):
        penalised[place, tokens[:place]] -= 1.5
    last, drafts = np.array([3]), np.arange(3)
    recorder.put(_request("a", presence_penalty=1.5))
    recorder.put(_request("b", presence_penalty=1.5, bad_words_token_ids="[[23, 7]]"))
    for request_id in ("a", "b"):
        shown = (Drawn(penalised[last], last), Drawn(penalised[drafts], drafts)) if request_id == "a" else ()
        places = {"positions": np.arange(3, 7), "draft_index_R": np.array([0, 1, 2, -1])}
        _put(recorder, 0, [request_id] * 4, raw, token_ids=torch.tensor(tokens), drawn=shown, **places)
    # After the last of them: 7 is then excluded.
    _put(recorder, 4, ["b"], raw[:1], token_ids=torch.tensor([9]))
    recorder.close()
    rows = sorted(Trace(trace_path).read("tokens").to_pylist(), key=lambda row: (row["request_id"], row["position"]))
    for row, place in zip(rows[:8], [0, 1, 2, 3] * 2, strict=True):
        assert abs(row["processed_logprob"] - _logprob(penalised[place], tokens[place])) < 1e-5
        assert (row["token_id"], row["kept_count"], row["kept_mass"]) == (tokens[place], VOCAB, 1.0)
    assert [row["kept_count"] for row in rows[8:]] == [VOCAB - 1]


class _StuckReducer:
    """Holds the writer's thread until it is let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()

    def __call__(self) -> dict[str, Any]:
        self.entered.set()
        assert self.gate.wait(20)
        return {"time_ns": 1, "kind": "paused"}


def test_a_full_queue_drops_rows_and_counts_them(trace_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = _recorder(trace_path, max_queue_mib=1)
    stuck = _StuckReducer()
    recorder.put(_request("a", presence_penalty=1.0))
    recorder.put(type(known_row("events", {}))("events", stuck))
    assert stuck.entered.wait(20)
    raw = _raw(1, 4).repeat(400, 1)  # 480,000 bytes: two fit
    started = time.perf_counter()
    for step_id in range(10):
        _put(recorder, step_id, ["a"], raw)
    assert time.perf_counter() - started < 5, "a hook must never wait for the writer"
    stuck.gate.set()
    recorder.close()
    trace = Trace(trace_path)
    assert trace.num_rows("tokens") == 2
    assert trace.num_rows("steps") == 10
    dropped = [json.loads(e["attributes"]) for e in trace.read("events").to_pylist() if e["kind"] == "rows_dropped"]
    assert sum(attributes["num_rows"] for attributes in dropped) == 8
    assert "rows dropped" in caplog.text


def test_a_slow_writer_is_waited_for_as_long_as_it_comes_on(trace_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = _recorder(trace_path)

    def slow() -> dict[str, Any]:
        time.sleep(0.4)
        return {"time_ns": 1, "kind": "paused"}

    for _ in range(8):
        recorder.put(type(known_row("events", {}))("events", slow))
    recorder.close(timeout=1.0)
    assert [event["kind"] for event in Trace(trace_path).read("events").to_pylist()].count("paused") == 8
    assert "did not finish" not in caplog.text


def test_a_writer_that_computes_comes_on(trace_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = _recorder(trace_path)
    done = threading.Event()

    def busy() -> dict[str, Any]:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            pass
        done.set()
        return {"time_ns": 1, "kind": "paused"}

    recorder.put(type(known_row("events", {}))("events", busy))
    recorder.close(timeout=0.5)
    assert done.is_set()
    assert "paused" in [event["kind"] for event in Trace(trace_path).read("events").to_pylist()]
    assert "did not finish" not in caplog.text


def test_a_writer_that_stands_still_is_not(trace_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = _recorder(trace_path)
    stuck = _StuckReducer()
    recorder.put(type(known_row("events", {}))("events", stuck))
    assert stuck.entered.wait(20)
    recorder.close(timeout=0.2)
    assert "the writer did not finish in" in caplog.text
    stuck.gate.set()


def test_a_broken_directory_disables_the_recorder_once(trace_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = _recorder(trace_path)
    recorder.put(_request("a"))
    recorder.seal()
    shutil.rmtree(trace_path / "journal")
    (trace_path / "journal").write_text("in the way")
    shutil.rmtree(trace_path / "tokens")
    for step_id in range(50):
        _put(recorder, step_id, ["a"], _raw(1, step_id))
        time.sleep(0.01)
    recorder.close()
    assert not recorder.enabled
    loud = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(loud) == 1
    assert "recorder disabled" in loud[0].getMessage()


def test_strict_turns_the_writers_failure_into_an_error(trace_path: Path) -> None:
    recorder = _recorder(trace_path, strict=True)
    recorder.seal()
    shutil.rmtree(trace_path)

    def put_until_noticed() -> None:
        for step_id in range(200):
            _put(recorder, step_id, ["a"], _raw(1, step_id))
            time.sleep(0.01)

    with pytest.raises(RecorderError, match="the writer failed"):
        put_until_noticed()


def test_a_capture_that_cannot_be_reduced_is_told_and_passed_over(trace_path: Path) -> None:
    recorder = _recorder(trace_path)
    recorder.put(_request("a"))
    _put(recorder, 0, ["a"], _raw(1, 0), token_ids=torch.tensor([VOCAB + 5]))
    _put(recorder, 1, ["a"], _raw(1, 1))
    recorder.close()
    trace = Trace(trace_path)
    assert trace.read("tokens").column("step_id").to_pylist() == [1]
    events = {event["kind"]: event for event in trace.read("events").to_pylist()}
    assert events["rows_dropped"]["step_id"] == 0
    assert json.loads(events["rows_dropped"]["attributes"])["num_rows"] == 1
    assert "recorder_error" in events


def test_hook_failures_disable_the_recorder_in_the_end(trace_path: Path) -> None:
    recorder = _recorder(trace_path)
    for _ in range(20):
        recorder.failed("a hook", ValueError("planted"))
    assert not recorder.enabled
    recorder.close()
    kinds = [event["kind"] for event in Trace(trace_path).read("events").to_pylist()]
    assert kinds.count("recorder_disabled") == 1
    assert kinds.count("recorder_error") == 8


def test_the_session_can_be_ended_from_outside(trace_path: Path) -> None:
    recorder = _recorder(trace_path)
    recorder.put(_request("a"))
    _put(recorder, 0, ["a"], _raw(1, 0))
    recorder.put(RequestGone("a"))
    recorder.seal()
    assert stop_workers(trace_path, "s", timeout=10) == []
    assert not recorder.enabled
    trace = Trace(trace_path)
    assert trace.num_rows("tokens") == 1
    assert not list((trace_path / "journal").rglob("*.zst"))
    recorder.close()


def test_a_step_held_back_is_not_lost_to_a_stop(trace_path: Path) -> None:
    recorder = _recorder(trace_path)
    recorder.put(_request("a"))
    recorder.seal()
    stuck = _StuckReducer()
    recorder.put(type(known_row("events", {}))("events", stuck))
    assert stuck.entered.wait(20)
    # The stop arrives while the thread is busy, so that it has not idled since the step.
    recorder.put_later(*_step(0, ["a"], _raw(1, 0)))
    stopper = threading.Thread(target=stop_workers, args=(trace_path, "s"))
    stopper.start()
    time.sleep(0.5)
    stuck.gate.set()
    stopper.join()
    assert not recorder.enabled
    assert Trace(trace_path).num_rows("tokens") == 1


def test_a_recorder_that_switched_itself_off_still_ends_with_its_session(trace_path: Path) -> None:
    recorder = _recorder(trace_path)
    recorder.seal()
    for _ in range(20):
        recorder.failed("a hook", ValueError("planted"))
    assert stop_workers(trace_path, "s", timeout=5) == []
    assert "recorder_disabled" in Trace(trace_path).read("events").column("kind").to_pylist()


def test_a_writer_that_is_waited_for_may_use_every_core() -> None:
    cores = os.sched_getaffinity(0)
    settled, over = threading.Event(), threading.Event()

    def work() -> None:
        settle_thread()
        settled.set()
        over.wait(20)

    writer = threading.Thread(target=work)
    os.sched_setaffinity(0, {min(cores)})  # as vLLM does with a thread that computes
    try:
        writer.start()
        assert settled.wait(20)
        assert writer.native_id is not None
        assert os.sched_getaffinity(writer.native_id) == set(range(os.cpu_count() or 1)) - {min(cores)}
        hurry(writer)
        assert os.sched_getaffinity(writer.native_id) == cores
    finally:
        os.sched_setaffinity(0, cores)
        over.set()
        writer.join()


def test_the_writer_leaves_the_engines_threads_alone(trace_path: Path) -> None:
    num_threads = torch.get_num_threads()
    recorder = _recorder(trace_path)
    recorder.seal()
    assert torch.get_num_threads() == num_threads
    seen: list[int] = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [num_threads]
    recorder.close()


@pytest.fixture(autouse=True)
def _propagating_logger() -> Iterator[None]:
    logger = logging.getLogger("tracekit")
    before, logger.propagate = logger.propagate, True
    yield
    logger.propagate = before


def test_no_exception_leaves_a_hook(trace_path: Path) -> None:
    recorder = _recorder(trace_path)
    with Hook(recorder, "somewhere") as hook:
        raise ValueError("planted")
    assert hook.failed
    assert recorder.hook_ns > 0
    with pytest.raises(KeyboardInterrupt), Hook(recorder, "somewhere"):
        raise KeyboardInterrupt
    recorder.close()
    (error,) = [e for e in Trace(trace_path).read("events").to_pylist() if e["kind"] == "recorder_error"]
    assert json.loads(error["attributes"]) == {"where": "somewhere", "error": "ValueError('planted')"}


def test_strict_lets_it_leave(trace_path: Path) -> None:
    recorder = _recorder(trace_path, strict=True)
    with pytest.raises(RecorderError, match="planted"), Hook(recorder, "somewhere"):
        raise ValueError("planted")
    recorder.close()


def test_a_reported_nan_is_kept_and_told_from_what_nobody_told() -> None:
    buffer = BatchBuffer()
    reported = np.array([-1.0, np.nan, UNKNOWN, -np.inf], np.float32)
    buffer.add("tokens", {"request_id": list("abcd"), "reported_logprob": reported})
    buffer.add("tokens", {"request_id": ["e"]})
    ((_, columns),) = buffer.drain()
    found = columns["reported_logprob"].to_pylist()
    assert (found[0], found[2], found[3], found[4]) == (-1.0, None, -np.inf, None)
    assert np.isnan(found[1])
