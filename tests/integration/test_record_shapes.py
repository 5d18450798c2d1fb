"""The recorder leaves tokens alone, and keeps count of them in a crowded, interrupted or killed engine."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from engine import V1, V1_OLD, Engine, run_engine
from tracekit.analysis import connect
from tracekit.store import Trace, recover

pytestmark = pytest.mark.engine


def test_tokens_are_the_same_with_and_without(shallow_model: Path, tmp_path: Path) -> None:
    run_engine("harmless", shallow_model, tmp_path / "rounds.json", tmp_path / "trace")
    rounds = json.loads((tmp_path / "rounds.json").read_text())
    assert [len(tokens) for tokens in rounds["off"]] == [64] * 24
    assert rounds["off"] == rounds["off_again"], "the engine itself is not repeatable here, so nothing can be said"
    assert rounds["on"] == rounds["off"]
    assert rounds["after"] == rounds["off"]
    rows = Trace(tmp_path / "trace").read("tokens", ["request_id", "output_index", "token_id"]).to_pylist()
    recorded: dict[str, list[int]] = {}
    for row in sorted(rows, key=lambda row: row["output_index"]):
        recorded.setdefault(row["request_id"], []).append(row["token_id"])
    assert sorted(recorded.values()) == sorted(rounds["on"])


@pytest.fixture(scope="module")
def crowded(shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Trace]:
    folder = tmp_path_factory.mktemp("crowded")
    run_engine("shapes", shallow_model, folder / "outputs.json", folder / "trace")
    return json.loads((folder / "outputs.json").read_text()), Trace(folder / "trace")


def _delivered(trace: Trace) -> dict[tuple[str, int | None], list[int]]:
    """Token ids by (external_id, sample_index), from the view `tokens`."""
    query = (
        "SELECT external_id, sample_index, list(token_id ORDER BY output_index) AS ids, "
        "list(output_index ORDER BY output_index) AS places "
        "FROM tokens JOIN requests USING (run_id, request_id) GROUP BY ALL"
    )
    found = {}
    for row in connect(trace.path).sql(query).arrow().to_pylist():
        assert row["places"] == list(range(len(row["ids"]))), row["external_id"]
        found[row["external_id"], row["sample_index"]] = row["ids"]
    return found


def test_delivered_tokens_are_the_outputs(crowded: tuple[dict[str, Any], Trace]) -> None:
    outputs, trace = crowded
    delivered = _delivered(trace)
    expected = {}
    for output in outputs["requests"]:
        for sample in output["samples"]:
            index = sample["index"] if output["request_id"] == "pair" else None
            expected[output["request_id"], index] = sample["token_ids"]
    expected["doomed", None] = outputs["doomed_token_ids"]
    assert delivered == expected


def test_every_request_has_its_outcome(crowded: tuple[dict[str, Any], Trace]) -> None:
    outputs, trace = crowded
    query = "SELECT external_id, sample_index, outcomes.* FROM outcomes JOIN requests USING (run_id, request_id)"
    rows = connect(trace.path).sql(query).arrow().to_pylist()
    by_id = {(row["external_id"], row["sample_index"]): row for row in rows}
    assert by_id["doomed", None]["finish_reason"] == "abort"
    for output in outputs["requests"]:
        for sample in output["samples"]:
            row = by_id[output["request_id"], sample["index"] if output["request_id"] == "pair" else None]
            assert row["finish_reason"] == sample["finish_reason"]
            assert row["stop_reason"] == (None if sample["stop_reason"] is None else str(sample["stop_reason"]))
            assert row["num_output_tokens"] == len(sample["token_ids"])
            assert row["num_preemptions"] in (0, None)
    assert len(rows) == len(by_id) == len(outputs["requests"]) + 2


def test_chunked_prefill_leaves_no_rows_for_discarded_samples(crowded: tuple[dict[str, Any], Trace]) -> None:
    outputs, trace = crowded
    steps = trace.read("steps").to_pylist()
    tokens = trace.read("tokens", ["request_id", "step_id", "output_index"]).to_pylist()
    long_prompt = next(len(o["prompt_token_ids"]) for o in outputs["requests"] if o["request_id"] == "long")
    assert long_prompt > 3 * 64, "the prompt was meant to take several steps"
    partial = 0
    rows = {(token["step_id"], token["request_id"]) for token in tokens}
    assert len(rows) == len(tokens)
    prompts = {row["request_id"]: row["num_prompt_tokens"] for row in trace.read("requests").to_pylist()}
    for step in steps:
        batch = zip(step["request_ids"], step["scheduled_tokens"], step["computed_tokens"], strict=True)
        for request_id, scheduled, computed in batch:
            in_the_middle = computed + scheduled < prompts[request_id]
            partial += in_the_middle
            assert ((step["step_id"], request_id) in rows) != in_the_middle
    assert partial >= 3
    assert max(step["num_scheduled_tokens"] for step in steps) <= 64
    assert max(step["num_requests"] for step in steps) <= 4


def test_nothing_failed_on_the_way(crowded: tuple[dict[str, Any], Trace]) -> None:
    _, trace = crowded
    kinds = {row["kind"] for row in trace.read("events").to_pylist()}
    assert kinds == {"writer_closed"}
    assert not list((trace.path / "journal").rglob("*.zst"))


@pytest.mark.parametrize(
    ("how", "engine"), [("exit", V1), ("exit", V1_OLD), ("kill", V1)], ids=["exit", "exit-0.18.1", "kill"]
)
def test_an_engine_that_ends_in_mid_flight(how: str, engine: Engine, shallow_model: Path, tmp_path: Path) -> None:
    trace_path, seen = tmp_path / "trace", tmp_path / "seen.json"
    if how == "exit":
        run_engine("midflight", shallow_model, seen, how, engine=engine, record_to=trace_path)
    else:
        env = _recorded_by_hand(trace_path)
        result = run_engine("midflight", shallow_model, seen, how, trace_path, engine=engine, env=env, check=False)
        assert result.returncode == -signal.SIGKILL, result.stderr[-3000:]
        _wait_for_the_dead(trace_path)
        before = Trace(trace_path).num_rows("tokens")
        copy = tmp_path / "copy"
        shutil.copytree(trace_path, copy)
        assert recover(trace_path)["tokens"] == before
        assert recover(trace_path) == {}
        assert Trace(copy).num_rows("tokens") == before
    had = json.loads(seen.read_text())
    assert len(had) == 6
    trace = Trace(trace_path)
    ids = {row["request_id"]: row["external_id"] for row in trace.read("requests").to_pylist() if row["external_id"]}
    recorded: dict[str, dict[int, int]] = {external: {} for external in had}
    for row in trace.read("tokens").to_pylist():
        places = recorded[ids[row["request_id"]]]
        assert row["output_index"] not in places
        places[row["output_index"]] = row["token_id"]
    for external, token_ids in had.items():
        places = recorded[external]
        # The engine may be ahead of its client, never behind.
        assert len(places) >= len(token_ids)
        assert [places[i] for i in range(len(places))][: len(token_ids)] == token_ids


def _recorded_by_hand(trace: Path) -> dict[str, str]:
    """The environment that `tracekit record` would set; here nothing must outlive the killed group."""
    from tracekit.record import RecordConfig
    from tracekit.store import create_trace

    create_trace(trace, "record")
    return RecordConfig(trace=str(trace), strict=True).to_env()


def _wait_for_the_dead(trace: Path) -> None:
    import time

    from tracekit.store.lease import live_writers

    deadline = time.monotonic() + 20
    while live_writers(trace / "journal") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not live_writers(trace / "journal")
