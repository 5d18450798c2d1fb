"""Features of the V0 engine beyond sampling parameters, on the engine itself: no row is wrong, missing or doubled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reference
from engine import V0, run_engine
from recorded import Recorded, Row, close

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def recorded(shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("v0")
    run_engine("v0", shallow_model, folder / "outputs.json", folder / "trace", engine=V0)
    return Recorded(folder / "outputs.json", folder / "trace")


def _outcomes(recorded: Recorded) -> dict[str, Row]:
    rows = recorded.trace.read("outcomes").to_pylist()
    assert len({row["request_id"] for row in rows}) == len(rows)
    return {row["request_id"]: row for row in rows}


def _vectors(recorded: Recorded, table: str) -> dict[tuple[str, int], Row]:
    return {(row["request_id"], row["position"]): row for row in recorded.trace.read(table).to_pylist()}


def test_tokens_are_the_outputs(recorded: Recorded) -> None:
    outcomes = _outcomes(recorded)
    checked = set()
    for request, output, sample, rows in recorded.every_sample(but=["silent"]):
        assert [row["token_id"] for row in rows] == sample["token_ids"], request["external_id"]
        assert [row["position"] for row in rows] == [request["num_prompt_tokens"] + i for i in range(len(rows))]
        assert [row["output_index"] for row in rows] == list(range(len(rows)))
        outcome = outcomes[request["request_id"]]
        assert (outcome["finish_reason"], outcome["num_output_tokens"]) == (sample["finish_reason"], len(rows))
        for row, entry in zip(rows, sample["logprobs"] or (), strict=True):
            assert row["reported_logprob"] == np.float32(entry[str(row["token_id"])][0])
            assert close(row["processed_logprob"], row["reported_logprob"])
        checked.add(output["request_id"])
    assert len(checked) == len(recorded.outputs["requests"]) - 1
    assert not recorded.events("recorder_error")
    assert not recorded.events("rows_dropped")


def test_samples_of_a_request_name_their_parent(recorded: Recorded) -> None:
    rows = [row for row in recorded.trace.read("requests").to_pylist() if row["external_id"] == "pair"]
    assert {(row["request_id"], row["sample_index"]) for row in rows} == {
        ("pair_parallel_sample_0", 0),
        ("pair_parallel_sample_1", 1),
    }
    assert {(row["parent_request_id"], row["n"], row["group_id"]) for row in rows} == {("pair", 2, "g")}


def test_aborted_requests_keep_what_they_had(recorded: Recorded) -> None:
    outcomes = _outcomes(recorded)
    for name, had in (("doomed", recorded.outputs["doomed"]), ("stream-left", recorded.outputs["left"])):
        rows = recorded.tokens[name]
        # The engine may be ahead of the client that leaves.
        assert [row["token_id"] for row in rows][: len(had)] == had
        assert len(had) <= len(rows) <= len(had) + 3
        assert outcomes[name]["finish_reason"] == "abort"
        assert len(had) <= outcomes[name]["num_output_tokens"] <= len(rows)


def test_a_request_that_does_not_want_to_leaves_no_row(recorded: Recorded) -> None:
    assert "silent" in {output["request_id"] for output in recorded.outputs["requests"]}
    for table in ("requests", "tokens", "outcomes"):
        assert "silent" not in recorded.trace.read(table, ["request_id"])["request_id"].to_pylist()
    assert any("silent" in step["request_ids"] for step in recorded.trace.read("steps").to_pylist())


def test_preemption_repeats_and_loses_nothing(recorded: Recorded) -> None:
    outcomes = _outcomes(recorded)
    resumed = recorded.events("request_resumed")
    assert recorded.outputs["num_preemptions"] >= 1, "the cache was meant to be too small"
    assert len(resumed) == recorded.outputs["num_preemptions"]
    assert sum(row["num_preemptions"] for row in outcomes.values()) == len(resumed)
    steps = {(step["run_id"], step["step_id"]): step for step in recorded.trace.read("steps").to_pylist()}
    assert len({run_id for run_id, _ in steps}) == 2, "there were two engines"
    for event in resumed:
        step = steps[event["run_id"], event["step_id"]]
        place = step["request_ids"].index(event["request_id"])
        tokens = recorded.tokens[event["request_id"]]
        known = [row for row in tokens if row["step_id"] < event["step_id"]]
        # Prompt and output are computed again, and the next token comes from that.
        assert step["computed_tokens"][place] == 0
        prompt = next(row for row in recorded.requests.values() if row["request_id"] == event["request_id"])
        assert step["scheduled_tokens"][place] == prompt["num_prompt_tokens"] + len(known)
        assert tokens[len(known)]["step_id"] == event["step_id"]


def test_prompt_positions_are_recorded_where_the_engine_scores_them(recorded: Recorded) -> None:
    assert recorded.prompt.keys() == {"scored"}
    output = next(output for output in recorded.outputs["requests"] if output["request_id"] == "scored")
    rows, logits = recorded.prompt["scored"], _vectors(recorded, "logits")
    assert [row["position"] for row in rows] == list(range(1, len(output["prompt_token_ids"])))
    for row, entries in zip(rows, output["prompt_logprobs"][1:], strict=True):
        assert row["output_index"] is None
        assert row["token_id"] == output["prompt_token_ids"][row["position"]]
        value, rank = entries[str(row["token_id"])]
        # A greedy request: nothing stands between raw and reported values.
        assert row["reported_logprob"] == np.float32(value)
        assert close(row["logprob"], value)
        assert row["rank"] <= rank <= row["rank"] + row["num_tied"]
        wide = logits["scored", row["position"]]["logits"]
        assert abs(reference.log_softmax(wide)[row["token_id"]] - row["logprob"]) < 5e-5


def test_guided_decoding_shapes_the_processed_distribution_only(recorded: Recorded) -> None:
    request, logits = recorded.requests["guided"], _vectors(recorded, "logits")
    assert json.loads(request["structured_output"])["choice"] == ["blue", "grey"]
    for row in recorded.tokens["guided"]:
        wide = np.array(logits["guided", row["position"]]["logits"])
        assert np.isfinite(wide).all(), "the guide's mask was not meant to be in it"
        assert abs(reference.log_softmax(wide)[row["token_id"]] - row["logprob"]) < 5e-5
        assert row["kept_count"] < 1000
        assert row["processed_logprob"] >= row["logprob"]


def test_hidden_states_reproduce_the_logits_bit_for_bit(recorded: Recorded) -> None:
    kept = _vectors(recorded, "hidden")
    assert {request_id for request_id, _ in kept} == {"scored", "guided"}
    rows: list[Any] = [*recorded.tokens["scored"], *recorded.tokens["guided"], *recorded.prompt["scored"]]
    assert kept.keys() == {(row["request_id"], row["position"]) for row in rows}
    # The run itself multiplied them with the head, by the engine's own torch.
    assert (recorded.outputs["num_rows"], recorded.outputs["num_differing"]) == (len(rows), 0)
