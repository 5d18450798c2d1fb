"""A recording of Model Runner V2 holds what that engine itself returns: raw and processed rows, in full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engine import V2, run_engine
from tiny_model import VOCAB_SIZE, make_tiny_model
from tracekit.store import Trace

pytestmark = pytest.mark.engine

MODES = ("raw_logits", "raw_logprobs", "processed_logits")
# Rows that a grammar masks: the engine returns nothing from before the mask.
MASKED = {"grammar", "grammar-greedy"}

Row = dict[str, Any]
Floats = npt.NDArray[np.float64]


class Recording:
    """One engine run: what the engine returned, and what was recorded."""

    def __init__(self, model: Path, folder: Path, mode: str) -> None:
        run_engine("v2", model, folder / "outputs.json", folder / "trace", mode, engine=V2)
        self.mode = mode
        self.model = model
        self.returned = json.loads((folder / "outputs.json").read_text())
        self.trace = Trace(folder / "trace")
        self.requests = merged(self.trace)
        self.names = {row["request_id"]: self.returned["names"][row["external_id"]] for row in self.requests}
        rows = self.trace.read("tokens").to_pylist()
        self.sampled = by_request([row for row in rows if not row["is_prompt"]], self.names)
        self.prompts = by_request([row for row in rows if row["is_prompt"]], self.names)
        self.logits = {
            (self.names[row["request_id"]], row["position"]): np.array(row["logits"], np.float64)
            for row in self.trace.read("logits").to_pylist()
        }

    def positions(self) -> list[tuple[str, Row, dict[str, list[Any]]]]:
        """Returns (request's name, recorded token, the engine's values at it) of tokens with values."""
        found = []
        for output in self.returned["requests"]:
            name, sample = self.returned["names"][output["request_id"]], output["samples"][0]
            if sample["logprobs"] is not None:
                found += [(name, *pair) for pair in zip(self.sampled[name], sample["logprobs"], strict=True)]
        return found


def merged(trace: Trace) -> list[Row]:
    requests: dict[str, Row] = {}
    for row in trace.read("requests").to_pylist():
        known = requests.setdefault(row["request_id"], {})
        known.update({name: value for name, value in row.items() if value is not None and name not in known})
    return list(requests.values())


def by_request(rows: list[Row], names: dict[str, str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["position"]):
        found.setdefault(names[row["request_id"]], []).append(row)
    return found


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=MODES)
def recording(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return Recording(tiny_model, tmp_path_factory.mktemp(request.param), request.param)


def values(entry: dict[str, list[Any]]) -> Floats:
    """The engine's value of each token of the vocabulary; it returns -inf as null."""
    assert len(entry) == VOCAB_SIZE
    return np.array([-np.inf if (value := entry[str(i)][0]) is None else value for i in range(VOCAB_SIZE)])


def logsumexp(row: Floats) -> float:
    return float(np.log(np.exp(row - row.max()).sum()) + row.max())


def close(value: float, expected: float) -> bool:
    return bool(abs(value - expected) <= 1e-5 + 1e-5 * abs(expected))


def test_tokens_are_those_of_the_engine_without_a_recorder(recording: Recording) -> None:
    outputs = [output["samples"][0]["token_ids"] for output in recording.returned["requests"]]
    assert outputs == recording.returned["off"]
    assert sum(map(len, outputs)) > 100
    for output, token_ids in zip(recording.returned["requests"], outputs, strict=True):
        rows = recording.sampled[recording.returned["names"][output["request_id"]]]
        num_prompt = len(output["prompt_token_ids"])
        assert [row["token_id"] for row in rows] == token_ids
        assert [row["position"] for row in rows] == list(range(num_prompt, num_prompt + len(token_ids)))
        assert [row["output_index"] for row in rows] == list(range(len(token_ids)))
        assert {row["draft_index"] for row in rows} == {None}


def test_raw_rows_are_the_engines_bits(recording: Recording) -> None:
    if recording.mode != "raw_logits":
        assert len(recording.logits) == sum(
            len(rows) for rows in [*recording.sampled.values(), *recording.prompts.values()]
        )
        return
    for name, row, entry in recording.positions():
        ours, theirs = recording.logits[name, row["position"]], values(entry)
        if name in MASKED:
            kept = np.isfinite(theirs)
            assert 1 <= kept.sum() < 30
            assert np.array_equal(ours[kept], theirs[kept])
            assert np.isfinite(ours).all()
        else:
            assert np.array_equal(ours, theirs), (name, row["position"])


def test_figures_follow_from_the_raw_rows(recording: Recording) -> None:
    for name, rows in [*recording.sampled.items(), *recording.prompts.items()]:
        for row in rows:
            logits = recording.logits[name, row["position"]]
            logprobs = logits - logsumexp(logits)
            token_id = row["token_id"]
            assert row["logit"] == logits[token_id]
            assert close(row["logsumexp"], logsumexp(logits))
            assert close(row["logprob"], logprobs[token_id])
            assert row["rank"] == 1 + (logits > logits[token_id]).sum()
            assert row["num_tied"] == (logits == logits[token_id]).sum() - 1
            assert close(row["entropy"], -(np.exp(logprobs) * logprobs).sum())
            assert row["logit_min"] == logits.min()
            order = sorted(range(VOCAB_SIZE), key=lambda i: (-logits[i], i))
            assert row["top_token_ids"] == order[:20]
            assert row["top_logits"] == [logits[i] for i in order[:20]]
            assert row["argmax_token_id"] == order[0]
            assert row["top1_margin"] == logits[order[0]] - logits[order[1]]


def test_processed_figures_are_of_the_distribution_drawn_from(recording: Recording) -> None:
    if recording.mode != "processed_logits":
        assert {row["processed_source"] for rows in recording.sampled.values() for row in rows} == {"engine"}
        return
    parameters = {recording.names[row["request_id"]]: row for row in recording.requests}
    truncated = 0
    for name, row, entry in recording.positions():
        drawn_from = values(entry)
        kept = np.isfinite(drawn_from)
        assert row["kept_count"] == kept.sum()
        assert close(row["processed_logprob"], drawn_from[row["token_id"]] - logsumexp(drawn_from[kept]))
        request = parameters[name]
        truncates = request["temperature"] > 0 and (
            request["top_p"] < 1 or request["top_k"] > 0 or request["min_p"] > 0
        )
        if not truncates:
            assert row["kept_mass"] == 1.0
        elif name == "top-p":
            scaled = recording.logits[name, row["position"]] / request["temperature"]
            mass = np.exp(logsumexp(scaled[kept]) - logsumexp(scaled))
            assert close(row["kept_mass"], mass)
            assert request["top_p"] <= mass < 1
        truncated += bool(truncates and row["kept_mass"] < 1)
    assert truncated > 30


def test_reported_logprob_is_what_the_client_got(recording: Recording) -> None:
    rows = {(name, row["position"]): row["reported_logprob"] for name, row, _ in recording.positions()}
    if recording.mode != "raw_logprobs":
        assert set(rows.values()) == {None}
        return
    for name, row, entry in recording.positions():
        value, _ = entry[str(row["token_id"])]
        assert rows[name, row["position"]] == np.float32(value)
        if name not in MASKED:
            assert close(row["logprob"], value)
    assert {row["reported_logprob"] for row in recording.sampled["silent"]} == {None}


def test_prompt_positions_are_those_the_engine_scored(recording: Recording) -> None:
    assert recording.prompts.keys() == recording.returned["prompt_logprobs"].keys() == {"prompt", "long-prompt"}
    prompt_ids = {recording.names[row["request_id"]]: row["prompt_token_ids"] for row in recording.requests}
    assert len(prompt_ids["long-prompt"]) == 150, "the prompt was meant to take three steps"
    for name, rows in recording.prompts.items():
        entries = recording.returned["prompt_logprobs"][name]
        assert entries[0] is None
        assert [row["position"] for row in rows] == list(range(1, len(entries)))
        assert [row["token_id"] for row in rows] == prompt_ids[name][1:]
        assert {row["output_index"] for row in rows} == {None}
        for row, entry in zip(rows, entries[1:], strict=True):
            value = entry[str(row["token_id"])]
            if recording.mode == "raw_logprobs":
                assert row["reported_logprob"] == np.float32(value)
                assert close(row["logprob"], value)
            else:
                assert row["reported_logprob"] is None
                assert row["logit"] == np.float32(value)


def test_logits_can_be_made_from_the_hidden_states(recording: Recording) -> None:
    import torch
    from safetensors.torch import load_file

    head_VH = load_file(recording.model / "model.safetensors")["lm_head.weight"]
    rows = recording.trace.read("hidden").to_pylist()
    assert len(rows) == len(recording.logits)
    for row in rows:
        hidden_H = torch.tensor(row["hidden"]).to(torch.bfloat16)
        assert row["source_dtype"] == "bfloat16"
        logits_V = torch.nn.functional.linear(hidden_H.unsqueeze(0), head_VH)[0].float().double().numpy()
        key = recording.names[row["request_id"]], row["position"]
        assert np.allclose(logits_V, recording.logits[key], rtol=2**-7, atol=2**-7), key


def test_steps_account_for_every_token(recording: Recording) -> None:
    steps = {row["step_id"]: row for row in recording.trace.read("steps").to_pylist()}
    assert sorted(steps) == list(range(len(steps)))
    scheduled: dict[str, int] = {}
    for step in steps.values():
        assert step["sampler_backend"] == "gumbel"
        assert step["cudagraph_mode"] == "NONE"
        assert step["padded_num_tokens"] == step["num_scheduled_tokens"] == sum(step["scheduled_tokens"]) <= 64
        assert step["num_prefill_tokens"] + step["num_decode_tokens"] == step["num_scheduled_tokens"]
        for request_id, count, computed in zip(
            step["request_ids"], step["scheduled_tokens"], step["computed_tokens"], strict=True
        ):
            assert computed == scheduled.get(request_id, 0)
            scheduled[request_id] = computed + count
    for request in recording.requests:
        rows = recording.sampled[recording.names[request["request_id"]]]
        assert scheduled[request["request_id"]] == request["num_prompt_tokens"] + len(rows) - 1
        for row in rows:
            assert steps[row["step_id"]]["request_ids"][row["batch_index"]] == request["request_id"]
    prefill = sum(step["num_prefill_tokens"] for step in steps.values())
    assert prefill == sum(request["num_prompt_tokens"] for request in recording.requests)


def test_the_run_says_which_runner_it_was(recording: Recording) -> None:
    (run,) = recording.trace.read("runs").to_pylist()
    assert (run["engine_version"], run["engine_generation"]) == ("0.32.0", "v2")
    assert run["logprobs_mode"] == recording.mode
    assert run["attention_backend"] == "CPU_ATTN"
    assert {row["kind"] for row in recording.trace.read("events").to_pylist()} == {"writer_closed"}
