"""Weight versions, the oldest weights behind the KV cache, and events, against books that a program keeps itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from engine import run_engine
from tracekit.store import Trace

pytestmark = pytest.mark.engine


class Recording:
    """A program's report, and what was recorded of it."""

    def __init__(self, report: Path, trace: Path) -> None:
        self.report: dict[str, Any] = json.loads(report.read_text())
        self.trace = Trace(trace)
        rows = self.trace.read("requests").to_pylist()
        self.ids = {row["external_id"]: row["request_id"] for row in rows if row["external_id"] is not None}
        self.names = {request_id: name for name, request_id in self.ids.items()}
        self.steps = sorted(self.trace.read("steps").to_pylist(), key=lambda row: row["step_id"])
        self.tokens = self.trace.read("tokens").to_pylist()
        self.events = sorted(self.trace.read("events").to_pylist(), key=lambda row: row["time_ns"])

    def tokens_of(self, name: str) -> list[dict[str, Any]]:
        """Returns a request's sampled tokens in order."""
        rows = [row for row in self.tokens if row["request_id"] == self.ids[name] and not row["is_prompt"]]
        return sorted(rows, key=lambda row: row["output_index"])

    def updates(self) -> list[dict[str, Any]]:
        """Returns the attributes of `weights_updated`, with the step."""
        rows = [row for row in self.events if row["kind"] == "weights_updated"]
        return [{**json.loads(row["attributes"]), "step": row["step_id"]} for row in rows]

    def happened(self, *kinds: str) -> list[dict[str, Any]]:
        """Returns events as the programs write theirs down."""
        found = []
        for row in self.events:
            if row["kind"] in kinds:
                request = {} if row["request_id"] is None else {"request": self.names[row["request_id"]]}
                attributes = json.loads(row["attributes"] or "{}")
                found.append({"kind": row["kind"], "step": row["step_id"], **request, **attributes})
        return found


@pytest.fixture(scope="module")
def books(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    folder = tmp_path_factory.mktemp("weights")
    run_engine("weights", model_path, folder / "report.json", folder / "trace")
    return Recording(folder / "report.json", folder / "trace")


@pytest.fixture(scope="module")
def remote(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    folder = tmp_path_factory.mktemp("weights-remote")
    run_engine("weights_remote", model_path, folder / "report.json", record_to=folder / "trace")
    return Recording(folder / "report.json", folder / "trace")


def test_each_token_has_its_weights_and_its_kv(books: Recording) -> None:
    stale = 0
    for name, request in books.report["requests"].items():
        assert request["num_cached"] == request["engine_num_cached"], f"{name}: the books are wrong about the cache"
        recorded = [
            {
                "version": row["weight_version"],
                "label": row["weight_label"],
                "partial": row["weights_partial"],
                "kv": row["kv_weight_version_min"],
                "step": row["step_id"],
                "token": row["token_id"],
            }
            for row in books.tokens_of(name)
        ]
        assert recorded == request["expected"], name
        stale += sum(row["kv"] < row["version"] for row in recorded)
    assert stale > 100


def test_what_the_run_was_meant_to_have(books: Recording) -> None:
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


def test_prompt_positions_have_them_too(books: Recording) -> None:
    rows = [row for row in books.tokens if row["is_prompt"]]
    request = books.report["requests"]["d"]
    assert len(rows) == request["num_prompt"] - 1
    first = request["expected"][0]
    assert {(row["weight_version"], row["kv_weight_version_min"], row["step_id"]) for row in rows} == {
        (first["version"], first["version"], first["step"])
    }


def test_labels_are_the_engines_own(books: Recording) -> None:
    for name, request in books.report["requests"].items():
        if name != "j":  # where the caller had its say
            labels = [label for label, start, end in request["engine_spans"] for _ in range(start, end)]
            assert [row["weight_label"] for row in books.tokens_of(name)] == labels


def test_steps_have_them_too(books: Recording) -> None:
    of_step = {row["step_id"]: row for row in books.steps}
    assert sorted(of_step) == list(range(len(books.steps)))
    for row in books.tokens:
        step = of_step[row["step_id"]]
        assert (step["weight_version"], step["weight_label"]) == (row["weight_version"], row["weight_label"])


def test_one_event_a_version_at_the_step_where_it_first_counts(books: Recording) -> None:
    updates = books.updates()
    last = books.steps[-1]["weight_version"]
    # The last update is followed by no step.
    assert [(update["old_version"], update["version"]) for update in updates] == [(v, v + 1) for v in range(last + 1)]
    for update in updates[:-1]:
        first = min(row["step_id"] for row in books.steps if row["weight_version"] == update["version"])
        assert update["step"] == first
        token = next(row for row in books.tokens if row["step_id"] == first)
        assert (update["label"], update["partial"]) == (token["weight_label"], token["weights_partial"])
    assert updates[-1]["step"] is None


def test_events_tell_how_weights_changed(books: Recording, model_path: Path) -> None:
    names = []
    for file in model_path.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names += list(tensors.keys())
    names.sort()

    def hashed(some: list[str]) -> str:
        return hashlib.blake2b(b"".join(name.encode() + b"\0" for name in sorted(some)), digest_size=16).hexdigest()

    whole = {"num_tensors": len(names), "names_hash": hashed(names)}
    half = {"num_tensors": len(names) // 2, "names_hash": hashed(names[: len(names) // 2])}
    one = [{"num_tensors": 1, "names_hash": hashed([name])} for name in names[:3]]
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


def test_checksums_are_of_the_weights_at_each_version(books: Recording) -> None:
    loaded = [json.loads(row["attributes"]) for row in books.events if row["kind"] == "weights_loaded"]
    updates = [update for update in books.updates() if update["step"] is not None]
    recorded = [*loaded, *updates]
    assert [event["checksums"] for event in recorded] == books.report["checksums"]
    assert [event["version"] for event in recorded] == list(range(len(recorded)))
    assert [event["old_checksums"] for event in updates] == books.report["checksums"][:-1]
    assert all(event["head_is_embedding"] for event in recorded)
    # The last change, which no step saw, was a reload, as the first one. And the engine computes the same.
    (engine,) = books.report["engine_checksums"]
    (embedding,) = [value for name, value in engine.items() if name.endswith("embed_tokens.weight")]
    assert embedding == updates[0]["checksums"]["embedding"]
    assert len({event["checksums"]["embedding"] for event in recorded}) > 4


def test_other_events_have_the_step_they_come_before(books: Recording) -> None:
    late = [{**event, "step": None} for event in books.report["late"]]
    assert books.happened("preempted", "cache_reset", "paused", "resumed") == [*books.report["events"], *late]
    assert len(books.report["events"]) == 6


def test_tokens_are_the_same_without_the_recorder(books: Recording) -> None:
    off, off_again, on = books.report["rounds"]
    assert off == off_again == on
    recorded = Trace(Path(f"{books.trace.path}-round"))
    rows = sorted(recorded.read("steps").to_pylist(), key=lambda row: row["step_id"])
    # Before the first step the weights are loaded, before the eleventh they are changed.
    assert [row["weight_version"] for row in rows] == [1] * 10 + [2] * 14
    assert recorded.num_rows("tokens") == 8 * 24


def test_an_engine_of_several_processes(remote: Recording) -> None:
    for request in remote.report["requests"]:
        rows = remote.tokens_of(request["request_id"])
        assert {(row["weight_version"], row["weight_label"], row["weights_partial"]) for row in rows} == {
            (request["version"], request["label"], False)
        }
        # The prompts share no block.
        assert {row["kv_weight_version_min"] for row in rows} == {request["version"]}
        if request["engine_spans"] is not None:
            assert request["engine_spans"] == [[request["label"], 0, len(rows)]]


def test_events_of_an_engine_of_several_processes(remote: Recording) -> None:
    assert remote.happened("cache_reset", "paused", "resumed", "preempted") == remote.report["events"]
    updates = remote.updates()
    assert [update["paths"] for update in updates] == [["reload_weights"], ["in place"], ["reload_weights"]]
    assert [update["label"] for update in updates] == ["policy-1", "policy-1", "policy-2"]
    assert [update["step"] for update in updates] == [6, 12, 18]
