"""Features beyond sampling parameters, each on a real engine: no row is wrong, missing or doubled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import reference
from engine import run_engine
from recorded import Recorded, close
from replayed import scored
from tracekit import Trace
from tracekit.replay import replay

pytestmark = pytest.mark.engine

ENVIRONMENT = ("VLLM_LOGGING_LEVEL=WARNING", "VLLM_CPU_KVCACHE_SPACE=1", "HF_HUB_OFFLINE=1")


def _run(factory: pytest.TempPathFactory, model: Path, *how: str) -> Recorded:
    folder = factory.mktemp("-".join(how))
    run_engine("features", model, folder / "outputs.json", folder / "trace", *how)
    return Recorded(folder / "outputs.json", folder / "trace")


def _assert_tokens_are_the_outputs(recorded: Recorded) -> None:
    # Each process writes what it knows of a request.
    outcomes = recorded.trace.read("outcomes").to_pylist()
    delivered = {row["request_id"]: n for row in outcomes if (n := row["num_output_tokens"]) is not None}
    for request, sample, rows in recorded.samples():
        num_delivered = delivered[request["request_id"]]
        assert [row["token_id"] for row in rows[:num_delivered]] == sample["token_ids"], request["external_id"]
        # Of the drafts that are accepted in the last step, some may lie beyond the end.
        assert len({row["step_id"] for row in rows[num_delivered - 1 :]}) == 1
        assert [row["output_index"] for row in rows] == list(range(len(rows)))
        assert [row["position"] for row in rows] == [request["num_prompt_tokens"] + i for i in range(len(rows))]
    assert len(recorded.requests) == len(recorded.outputs["requests"])
    assert not recorded.events("recorder_error")
    assert not recorded.events("rows_dropped")


@pytest.fixture(scope="module", params=["raw_logprobs", "processed_logprobs"])
def speculative(
    request: pytest.FixtureRequest, model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Recorded]:
    return request.param, _run(tmp_path_factory, model_path, "speculative", request.param)


def test_speculative_decoding_keeps_accepted_tokens_with_their_target_logits(
    speculative: tuple[str, Recorded],
) -> None:
    mode, recorded = speculative
    _assert_tokens_are_the_outputs(recorded)
    num_accepted = num_with_drafts = 0
    for _, sample, rows in recorded.samples():
        for row, entry in zip(rows[: len(sample["logprobs"])], sample["logprobs"], strict=True):
            value, rank = entry[str(row["token_id"])]
            if mode == "raw_logprobs":
                assert row["logprob"] == np.float32(value)
                assert row["rank"] <= rank <= row["rank"] + row["num_tied"]
            else:
                assert close(row["processed_logprob"], value)
            assert row["reported_logprob"] == np.float32(value)
            assert row["processed_source"] == "engine"
        steps = {row["step_id"] for row in rows}
        of_step = {step: [row["draft_index"] for row in rows if row["step_id"] == step] for step in steps}
        for drafts in of_step.values():
            # Drafts that were accepted, in order, then the one that the target model sampled itself.
            assert drafts in ([None], list(range(len(drafts))))
            num_with_drafts += drafts != [None]
            num_accepted += len(drafts) - 1
    assert num_accepted == recorded.outputs["num_accepted"] > 20
    assert num_with_drafts == recorded.outputs["num_drafts"]


def test_truncation_under_speculative_decoding(speculative: tuple[str, Recorded]) -> None:
    _, recorded = speculative
    kept = 0
    for request, _, rows in recorded.samples():
        truncates = request["temperature"] > 0 and (request["top_p"] < 1 or request["top_k"] > 0)
        for row in rows:
            assert (row["kept_count"] < 49152) == truncates
            assert (row["kept_mass"] < 1) == truncates
            if truncates and request["top_p"] < 1:
                assert row["kept_mass"] >= request["top_p"] - 1e-6
            kept += truncates and row["draft_index"] is not None
    assert kept > 5, "accepted drafts of truncated requests were meant to be among them"


@pytest.fixture(scope="module")
def squeezed(shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return _run(tmp_path_factory, shallow_model, "squeezed")


def test_preemption_under_async_scheduling_repeats_and_loses_nothing(squeezed: Recorded) -> None:
    _assert_tokens_are_the_outputs(squeezed)
    for _, sample, rows in squeezed.samples():
        for row, entry in zip(rows, sample["logprobs"], strict=True):
            assert row["logprob"] == np.float32(entry[str(row["token_id"])][0])
    num_preemptions = squeezed.outputs["num_preemptions"]
    assert num_preemptions >= 2, "the cache was meant to be too small"
    assert len(squeezed.events("request_resumed")) == num_preemptions
    outcomes = squeezed.trace.read("outcomes").to_pylist()
    assert sum(row["num_preemptions"] or 0 for row in outcomes) == num_preemptions
    runs = squeezed.trace.read("runs").to_pylist()
    assert {row["async_scheduling"] for row in runs} == {True}
    # A step that computes a preempted request's tokens again counts them as prefill.
    steps = squeezed.trace.read("steps").to_pylist()
    prompts = sum(request["num_prompt_tokens"] for request in squeezed.requests.values())
    assert sum(step["num_prefill_tokens"] for step in steps) > prompts


def test_lora_requests_carry_their_adapter(squeezed: Recorded) -> None:
    names = [request.get("lora") for request, _, _ in squeezed.samples()]
    assert names == [None] * 16 + ["pirate"]


def test_a_replay_with_the_adapter_is_as_near_as_one_without_any(
    squeezed: Recorded, shallow_model: Path, tmp_path: Path
) -> None:
    """Both in bf16, as the engine; the adapter's request with the base model is far off."""
    *plain, pirate = [request for request, _, _ in squeezed.samples()]
    adapter = squeezed.trace.path.with_name("adapter")
    differences = {}
    hf: dict[str, Any] = {"backend": "hf", "dtype": "bfloat16"}
    vllm: dict[str, Any] = {"backend": "vllm", "engine_arg": ("enforce_eager=true",), "env": ENVIRONMENT}
    cases = {
        "plain": (plain[0], adapter, hf),
        "pirate": (pirate, adapter, hf),
        "base": (pirate, "base", hf),
        "forced": (pirate, adapter, vllm),
    }
    for name, (request, folder, settings) in cases.items():
        only = [(request["run_id"], request["request_id"])]
        replay(squeezed.trace, tmp_path / name, only=only, model=shallow_model, lora=(f"pirate={folder}",), **settings)
        theirs = squeezed.tokens[request["request_id"]]
        (ours,) = scored(tmp_path / name).values()
        differences[name] = np.mean([abs(a["logprob"] - b["logprob"]) for a, b in zip(theirs, ours, strict=True)])
    assert differences["plain"] < 0.05
    assert differences["pirate"] < 0.05
    assert differences["forced"] < 0.05
    (request,) = Trace(tmp_path / "forced").read("requests").to_pylist()
    assert request["lora"] == "pirate"
    assert differences["base"] > 3 * differences["pirate"], differences


@pytest.fixture(scope="module")
def whole(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    recorded = _run(tmp_path_factory, model_path, "whole")
    left_out = recorded.outputs["requests"].pop(7)
    assert len(left_out["samples"][0]["token_ids"]) > 1
    return recorded


def test_a_request_says_itself_what_is_kept_of_it(whole: Recorded) -> None:
    # `_assert_tokens_are_the_outputs` shows below that nothing of the one that asked to be left out is there.
    assert "7" not in whole.requests
    in_part = whole.requests["8"]
    assert in_part["group_id"] == "g1"
    for table, expected in (("hidden", True), ("logits", False)):
        found = whole.trace.read(table, ["request_id"]).column(0).to_pylist()
        assert (in_part["request_id"] in found) == expected


def test_prompt_logprobs_become_prompt_positions(whole: Recorded) -> None:
    _assert_tokens_are_the_outputs(whole)
    scored = [output for output in whole.outputs["requests"] if output["prompt_logprobs"]]
    assert [len(output["prompt_token_ids"]) > 256 for output in scored] == [True, False]
    for output in scored:
        request = whole.requests[output["request_id"]]
        rows = whole.prompt[request["request_id"]]
        # The first token of a prompt follows nothing.
        assert [row["position"] for row in rows] == list(range(1, request["num_prompt_tokens"]))
        for row in rows:
            assert row["token_id"] == output["prompt_token_ids"][row["position"]]
            value, rank = output["prompt_logprobs"][row["position"]][str(row["token_id"])]
            assert row["logprob"] == row["reported_logprob"] == np.float32(value)
            assert row["rank"] <= rank <= row["rank"] + row["num_tied"]
            assert row["output_index"] is row["processed_logprob"] is row["kept_count"] is None
    assert len(whole.prompt) == len(scored)


def _vectors(recorded: Recorded, table: str) -> dict[tuple[str, int], dict[str, Any]]:
    rows = recorded.trace.read(table).to_pylist()
    found = {(row["request_id"], row["position"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_whole_rows_are_the_raw_logits(whole: Recorded) -> None:
    logits = _vectors(whole, "logits")
    in_part = whole.requests["8"]["request_id"]
    checked = 0
    for request_id, rows in [*whole.tokens.items(), *whole.prompt.items()]:
        for row in rows if request_id != in_part else []:
            checked += 1
            found = logits[row["request_id"], row["position"]]
            assert (found["source_dtype"], found["output_index"]) == ("bfloat16", row["output_index"])
            wide = np.array(found["logits"], np.float32)
            assert wide.shape == (49152,)
            assert wide[row["top_token_ids"]].tolist() == row["top_logits"]
            assert (
                abs(reference.log_softmax(wide)[row["token_id"]] - row["logprob"]) < 5e-5
            )  # sums of eight lanes are that far off
    assert checked == len(logits)


def test_hidden_states_reproduce_the_logits_bit_for_bit(whole: Recorded, model_path: Path) -> None:
    # A kernel rounds as the number of rows in its product has it: of a step's requests, or of a prompt's piece.
    weights = load_file(model_path / "model.safetensors")
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    hidden, logits = _vectors(whole, "hidden"), _vectors(whole, "logits")
    assert len(hidden) == whole.trace.num_rows("tokens")
    assert {row["source_dtype"] for row in hidden.values()} == {"bfloat16"}
    num_requests = {row["step_id"]: row["num_requests"] for row in whole.trace.read("steps").to_pylist()}
    sizes = {
        (row["request_id"], row["position"]): [num_requests[row["step_id"]]]
        for rows in whole.tokens.values()
        for row in rows
    }
    for rows in whole.prompt.values():
        sizes |= {(row["request_id"], row["position"]): [len(rows), 1, 8, 32, 48, 128] for row in rows}
    keys = list(logits)
    left = set(keys)
    for turn in range(6):
        for size in sorted({sizes[key][turn] for key in left if turn < len(sizes[key])}):
            chosen = [key for key in keys if key in left and turn < len(sizes[key]) and sizes[key][turn] == size]
            for at in range(0, len(chosen), size):
                part = chosen[at : at + size]
                states = torch.tensor([hidden[key]["hidden"] for key in part]).bfloat16()
                filled = torch.nn.functional.pad(states, (0, 0, 0, size - len(part)))
                products = torch.nn.functional.linear(filled, head).float().numpy()
                wide = zip(part, products, strict=False)
                left -= {key for key, row in wide if np.array_equal(row, np.array(logits[key]["logits"], np.float32))}
    assert left == set()


def test_a_grammar_masks_the_processed_distribution_only(whole: Recorded) -> None:
    constrained = [item for item in whole.samples() if item[0].get("structured_output")]
    assert len(constrained) == 3
    logits = _vectors(whole, "logits")
    for request, sample, rows in constrained:
        for row, entry in zip(rows, sample["logprobs"], strict=True):
            raw = np.array(logits[row["request_id"], row["position"]]["logits"])
            assert (
                abs(reference.log_softmax(raw)[row["token_id"]] - row["logprob"]) < 5e-5
            )  # sums of eight lanes are that far off
            # The engine's raw logprobs are after the mask: at temperature 1, or greedily, they are the processed ones.
            reported = entry[str(row["token_id"])][0]
            assert row["reported_logprob"] == np.float32(reported)
            if request["temperature"] in (0, 1):
                assert close(row["processed_logprob"], reported)
            assert 1 <= row["kept_count"] < 1000
    assert json.loads(constrained[0][0]["structured_output"])["json"]["required"] == ["n"]


def test_truncation_after_a_processor_of_the_user(whole: Recorded) -> None:
    """Its work is in no parameter: what was kept is kept of what it made."""
    logits = _vectors(whole, "logits")
    request = whole.requests["9"]
    rows = whole.tokens[request["request_id"]]
    masses = []
    for row in rows:
        boosted = np.array(logits[row["request_id"], row["position"]]["logits"])
        boosted[216] += 4
        logprobs, count, mass = reference.processed(boosted, request, [], [])
        assert abs(row["processed_logprob"] - logprobs[row["token_id"]]) < 5e-5
        assert (row["kept_count"], row["kept_mass"]) == (count, pytest.approx(mass, abs=1e-5))
        masses.append(mass)
    assert min(masses) >= 0.9


def test_logprobs_of_given_ids_are_reported_with_those_of_the_sampled_ones(whole: Recorded) -> None:
    _, sample, rows = whole.samples()[-1]
    for row, entry in zip(rows, sample["logprobs"], strict=True):
        assert entry.keys() == {str(row["token_id"]), "28", "30"}
        assert row["reported_logprob"] == np.float32(entry[str(row["token_id"])][0])


def test_exclusions_show_in_kept_count(whole: Recorded) -> None:
    requests = {request.get("external_id"): (request, rows) for request, _, rows in whole.samples()}
    excluded = {"4": 49152 - 4, "5": 5, "6": 49152 - 4}
    for external_id, count in excluded.items():
        rows = requests[external_id][1]
        for row in rows:
            still = external_id != "6" or row["output_index"] < 10
            assert row["kept_count"] == (count if still else 49152), (external_id, row["output_index"])
    assert json.loads(requests["4"][0]["bad_words_token_ids"])
    assert requests["5"][0]["allowed_token_ids"] == [28, 30, 260, 253, 216]
    assert requests["6"][0]["min_tokens"] == 10
