"""Weight versions, the oldest weights behind the KV cache, and events, against books that a program keeps itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import run_engine
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


@pytest.fixture(scope="module")
def books(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> WeightRecording:
    folder = tmp_path_factory.mktemp("weights")
    run_engine("weights", model_path, folder / "report.json", folder / "trace")
    return WeightRecording(json.loads((folder / "report.json").read_text()), folder / "trace")


@pytest.fixture(scope="module")
def remote(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> WeightRecording:
    folder = tmp_path_factory.mktemp("weights-remote")
    run_engine("weights_remote", model_path, folder / "report.json", record_to=folder / "trace")
    return WeightRecording(json.loads((folder / "report.json").read_text()), folder / "trace")


def test_each_token_has_its_weights_and_its_kv(books: WeightRecording) -> None:
    for name, request in books.report["requests"].items():
        assert request["num_cached"] == request["engine_num_cached"], f"{name}: the books are wrong about the cache"
    assert check_tokens(books) > 100


def test_what_the_run_was_meant_to_have(books: WeightRecording) -> None:
    """Else the test before proves less than it seems to."""
    requests = books.report["requests"]

    def seen(name: str, key: str) -> list[Any]:
        return list(dict.fromkeys(row[key] for row in requests[name]["expected"]))

    assert seen("a", "version") == list(range(9)), "changes in the midst of a request"
    assert seen("a", "kv") == seen("b", "kv") == seen("c", "kv") == [0], "the cache kept, and shared"
    assert seen("b", "version")[0] == 1, "blocks of older weights were hit"
    assert requests["c"]["num_cached"] == 512, "the generated part of an earlier turn too"
    assert seen("e", "kv") == [0, 9], "the cache cleared in the midst of a request"
    assert seen("g", "kv") == seen("h", "kv") == [9]
    assert requests["g"]["num_cached"] == 256
    assert seen("i", "partial") == [False, True]
    assert seen("j", "label") == ["policy-9b", "mine", "written out of sight", "in parts", "11"]


def test_prompt_positions_have_them_too(books: WeightRecording) -> None:
    rows = [row for row in books.tokens if row["is_prompt"]]
    request = books.report["requests"]["d"]
    assert len(rows) == request["num_prompt"] - 1
    first = request["expected"][0]
    assert {(row["weight_version"], row["kv_weight_version_min"], row["step_id"]) for row in rows} == {
        (first["version"], first["version"], first["step"])
    }


def test_labels_are_the_engines_own(books: WeightRecording) -> None:
    for name, request in books.report["requests"].items():
        if name != "j":  # where the caller had its say
            labels = [label for label, start, end in request["engine_spans"] for _ in range(start, end)]
            assert [row["weight_label"] for row in books.tokens_of(name)] == labels


def test_steps_have_them_too(books: WeightRecording) -> None:
    check_steps(books)


def test_one_event_a_version_at_the_step_where_it_first_counts(books: WeightRecording) -> None:
    check_event_of_each_version(books)


def test_events_tell_how_weights_changed(books: WeightRecording, model_path: Path) -> None:
    names = tensor_names(model_path)
    whole = {"num_tensors": len(names), "names_hash": names_hash(names)}
    half = {"num_tensors": len(names) // 2, "names_hash": names_hash(names[: len(names) // 2])}
    one = [{"num_tensors": 1, "names_hash": names_hash([name])} for name in names[:3]]
    nothing = {"num_tensors": None, "names_hash": None}
    expected = [
        {**whole, "paths": ["reload_weights"], "num_calls": 1, "calls": ["reload_weights"]},
        {**whole, "paths": ["load_weights"], "num_calls": len(names), "calls": ["update_weight"]},
        *({**each, "paths": ["load_weights"], "num_calls": 1, "calls": ["update_weight"]} for each in one),
        {"paths": ["in place"], "calls": ["scale_in_place"]},
        {"num_tensors": 1, "paths": ["in place"], "calls": ["_replace_a_norm"]},
        {"paths": ["in place"], "calls": []},
        {**whole, "paths": ["reload_weights"]},
        {**half, "paths": ["update_weights"], "partial": True},
        {**whole, "paths": ["update_weights", "finish_weight_update"], "label": "policy-9"},
        {**nothing, "paths": ["set_weight_version"], "label": "written out of sight"},
        {**one[0], "paths": ["load_weights"], "partial": True},
        {**one[0], "paths": ["set_weight_version"], "label": "11"},
        {**whole, "paths": ["reload_weights"]},
    ]
    updates = books.updates()
    assert [{key: update[key] for key in wanted} for update, wanted in zip(updates, expected, strict=True)] == expected
    # Fused as vLLM fuses them, these are all its parameters.
    assert updates[5]["num_tensors"] == updates[7]["num_tensors"] > 100


def test_checksums_are_of_the_weights_at_each_version(books: WeightRecording) -> None:
    check_checksums(books)
    updates = books.updates()
    # The last change, which no step saw, was a reload, as the first one. And the engine computes the same.
    (engine,) = books.report["engine_checksums"]
    (embedding,) = [value for name, value in engine.items() if name.endswith("embed_tokens.weight")]
    assert embedding == updates[0]["checksums"]["embedding"]
    assert len({update["checksums"]["embedding"] for update in updates[:-1]}) > 4


def test_other_events_have_the_step_they_come_before(books: WeightRecording) -> None:
    late = [{**event, "step": None} for event in books.report["late"]]
    assert books.happened("preempted", "cache_reset", "paused", "resumed") == [*books.report["events"], *late]
    assert len(books.report["events"]) == 6


def test_tokens_are_the_same_without_the_recorder(books: WeightRecording) -> None:
    off, off_again, on = books.report["rounds"]
    assert off == off_again == on
    recorded = Trace(Path(f"{books.trace.path}-round"))
    rows = sorted(recorded.read("steps").to_pylist(), key=lambda row: row["step_id"])
    # Before the first step the weights are loaded, before the eleventh they are changed.
    assert [row["weight_version"] for row in rows] == [1] * 10 + [2] * 14
    assert recorded.num_rows("tokens") == 8 * 24


def test_an_engine_of_several_processes(remote: WeightRecording) -> None:
    for request in remote.report["requests"]:
        rows = remote.tokens_of(request["request_id"])
        assert {(row["weight_version"], row["weight_label"], row["weights_partial"]) for row in rows} == {
            (request["version"], request["label"], False)
        }
        # The prompts share no block.
        assert {row["kv_weight_version_min"] for row in rows} == {request["version"]}
        if request["engine_spans"] is not None:
            assert request["engine_spans"] == [[request["label"], 0, len(rows)]]


def test_events_of_an_engine_of_several_processes(remote: WeightRecording) -> None:
    assert remote.happened("cache_reset", "paused", "resumed", "preempted") == remote.report["events"]
    updates = remote.updates()
    assert [update["paths"] for update in updates] == [["reload_weights"], ["in place"], ["reload_weights"]]
    assert [update["label"] for update in updates] == ["policy-1", "policy-1", "policy-2"]
    assert [update["step"] for update in updates] == [6, 12, 18]
