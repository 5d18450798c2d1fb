"""Weight versions, KV and events of the V0 engine, against books that a program keeps itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import V0, run_engine
from tracekit.store import Trace
from weight_books import (
    WeightRecording,
    check_checksums,
    check_event_of_each_version,
    check_steps,
    check_tokens,
    names_hash,
    tensor_names,
)

pytestmark = pytest.mark.engine


def _run(kind: str, model_path: Path, folder: Path) -> WeightRecording:
    run_engine("v0_weights", model_path, folder / "report.json", folder / "trace", kind, engine=V0)
    return WeightRecording(json.loads((folder / "report.json").read_text()), folder / "trace")


@pytest.fixture(scope="module")
def books(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> WeightRecording:
    return _run("cached", model_path, tmp_path_factory.mktemp("v0-weights"))


@pytest.fixture(scope="module")
def small(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> WeightRecording:
    return _run("small", model_path, tmp_path_factory.mktemp("v0-weights-small"))


def test_each_token_has_its_weights_and_its_kv(books: WeightRecording) -> None:
    for predicted, computed in books.report["num_computed"]:
        assert predicted == computed, "the books are wrong about the cache"
    assert check_tokens(books) > 100


def test_what_the_run_was_meant_to_have(books: WeightRecording) -> None:
    """Else the test before proves less than it seems to."""
    requests = books.report["requests"]

    def seen(name: str, key: str) -> list[Any]:
        return list(dict.fromkeys(row[key] for row in requests[name]["expected"]))

    assert seen("a", "version") == list(range(10)), "changes in the midst of a request"
    assert seen("a", "kv") == seen("b", "kv") == seen("b-whole", "kv") == seen("c", "kv") == [0], "the cache kept"
    assert seen("b", "version")[0] == 1, "blocks of older weights were hit"
    assert (requests["b"]["num_cached"], requests["b-whole"]["num_cached"]) == (32, 48)
    assert requests["c"]["num_cached"] == 112, "the generated part of an earlier turn too"
    assert seen("e", "kv") == [9], "the cache cleared"
    assert seen("e", "partial") == [False, True]
    assert seen("e", "label") == [None, "mine", "written out of sight", "in parts", "11"]
    assert seen("f-again", "kv") == [13, 12], "a block given up for an older one"
    assert seen("g", "kv") == [13, 14], "and for a newer one"
    assert requests["f"]["tokens"] == requests["f-again"]["tokens"] == requests["g"]["tokens"]


def test_cached_tokens_are_what_the_engine_did_not_compute(books: WeightRecording) -> None:
    rows = books.trace.read("requests", ["request_id", "num_cached_tokens"]).to_pylist()
    recorded = {row["request_id"]: row["num_cached_tokens"] for row in rows if row["num_cached_tokens"] is not None}
    assert recorded == {books.ids[name]: request["num_cached"] for name, request in books.report["requests"].items()}


def test_steps_of_prompts_count_what_was_computed(books: WeightRecording) -> None:
    counts = [row["num_scheduled_tokens"] for row in books.steps if row["num_prefill_tokens"]]
    assert counts == [computed for _, computed in books.report["num_computed"]]


def test_prompt_positions_have_them_too(books: WeightRecording) -> None:
    rows = [row for row in books.tokens if row["is_prompt"]]
    request = books.report["requests"]["d"]
    assert len(rows) == request["num_prompt"] - 1
    first = request["expected"][0]
    assert {(row["weight_version"], row["kv_weight_version_min"], row["step_id"]) for row in rows} == {
        (first["version"], first["kv"], first["step"])
    }


def test_steps_have_them_too(books: WeightRecording) -> None:
    check_steps(books)


def test_one_event_a_version_at_the_step_where_it_first_counts(books: WeightRecording) -> None:
    check_event_of_each_version(books)


def test_events_tell_how_weights_changed(books: WeightRecording, model_path: Path) -> None:
    names = tensor_names(model_path)
    assert names == books.report["names"]
    whole = {"num_tensors": len(names), "names_hash": names_hash(names)}
    one = [{"num_tensors": 1, "names_hash": names_hash([name])} for name in names[:3]]
    said = {"num_tensors": None, "names_hash": None, "paths": ["set_weight_version"]}
    expected = [
        {**whole, "paths": ["load_weights"], "num_calls": 1, "calls": ["load_checkpoint"]},
        {**whole, "paths": ["load_weights"], "num_calls": len(names), "calls": ["update_weight"]},
        *({**each, "paths": ["load_weights"], "num_calls": 1, "calls": ["update_weight"]} for each in one),
        {"paths": ["in place"], "calls": ["scale_in_place"]},
        {"num_tensors": 1, "paths": ["in place"], "calls": ["_replace_a_norm"]},
        {"paths": ["in place"], "calls": ["ExecutorBase.apply_model.<locals>.rpc_func"]},
        {"paths": ["in place"], "calls": []},
        {**said, "label": "written out of sight"},
        {**one[0], "paths": ["load_weights"], "partial": True},
        {**one[0], "paths": ["set_weight_version"], "label": "11"},
        {**said, "label": "f is over"},
        {**said, "label": "g goes on"},
        {**one[0], "paths": ["load_weights"]},
    ]
    updates = books.updates()
    assert [{key: update[key] for key in wanted} for update, wanted in zip(updates, expected, strict=True)] == expected
    # Fused as vLLM fuses them, these are all its parameters.
    assert updates[5]["num_tensors"] == updates[7]["num_tensors"] == updates[8]["num_tensors"] > 100


def test_checksums_are_of_the_weights_at_each_version(books: WeightRecording) -> None:
    check_checksums(books)
    assert len({update["checksums"]["embedding"] for update in books.updates() if "checksums" in update}) > 4


def test_other_events_have_the_step_they_come_before(books: WeightRecording) -> None:
    late = [{**event, "step": None} for event in books.report["late"]]
    assert books.happened("preempted", "cache_reset", "paused", "resumed") == [*books.report["events"], *late]
    assert [event["kind"] for event in books.report["events"]] == [
        "cache_reset",
        "cache_reset",
        "cache_reset",
        "paused",
        "resumed",
        "cache_reset",
    ]


def test_preempted_requests_start_anew_and_chunks_keep_what_they_began_with(small: WeightRecording) -> None:
    check_tokens(small)
    check_steps(small)
    events = small.report["events"]
    assert small.happened("preempted") == events
    assert len(events) == small.report["num_preemptions"] >= 2
    assert not small.report["late"]
    for name in {event["request"] for event in events}:
        ages = [row["kv"] for row in small.report["requests"][name]["expected"]]
        assert ages == sorted(ages)
        assert len(set(ages)) > 1, "its KV is of newer weights after each preemption"
    # A prompt whose last chunk is computed with newer weights than its first.
    firsts = [request["expected"][0] for request in small.report["requests"].values()]
    assert any(row["kv"] < row["version"] for row in firsts)


def test_tokens_are_the_same_without_the_recorder(books: WeightRecording) -> None:
    off, off_again, on = books.report["rounds"]
    assert off == off_again == on
    recorded = Trace(Path(f"{books.trace.path}-round"))
    rows = sorted(recorded.read("steps").to_pylist(), key=lambda row: row["step_id"])
    # Before the first step the weights are loaded, before the seventh they are changed.
    assert [row["weight_version"] for row in rows] == [1] * 6 + [2] * 6
    assert recorded.num_rows("tokens") == 4 * 12
