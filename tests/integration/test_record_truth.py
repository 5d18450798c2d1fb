"""A recording holds what the engine itself returns, in every logprobs mode."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import run_engine
from tracekit.store import Trace

pytestmark = pytest.mark.engine

MODES = ("raw_logprobs", "processed_logprobs", "raw_logits")
TOP_K = 20


class Recording:
    """One engine run: what the engine returned, and what was recorded."""

    def __init__(self, outputs: Path, trace: Path) -> None:
        self.outputs = json.loads(outputs.read_text())["requests"]
        self.trace = Trace(trace)
        requests: dict[str, dict[str, Any]] = {}
        for row in self.trace.read("requests").to_pylist():
            merged = requests.setdefault(row["request_id"], {})
            merged.update({name: value for name, value in row.items() if value is not None and name not in merged})
        self.requests = {row["external_id"]: row for row in requests.values()}
        self.tokens: dict[str, list[dict[str, Any]]] = {}
        for row in sorted(self.trace.read("tokens").to_pylist(), key=lambda row: row["output_index"]):
            self.tokens.setdefault(row["request_id"], []).append(row)

    def positions(self) -> list[tuple[dict[str, Any], dict[str, list[Any]], dict[str, Any]]]:
        """Returns (recorded token, the engine's logprobs at it, the request's row) of every sampled position."""
        found = []
        for output in self.outputs:
            request = self.requests[output["request_id"]]
            entries = output["samples"][0]["logprobs"]
            found += [
                (row, entry, request) for row, entry in zip(self.tokens[request["request_id"]], entries, strict=True)
            ]
        return found


@pytest.fixture(scope="module", params=MODES)
def recording(request: pytest.FixtureRequest, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    folder = tmp_path_factory.mktemp(request.param)
    run_engine("truth", model_path, folder / "outputs.json", request.param, record_to=folder / "trace")
    made = Recording(folder / "outputs.json", folder / "trace")
    made.mode = request.param  # type: ignore[attr-defined]
    return made


def close(value: float, expected: float) -> bool:
    return abs(value - expected) <= 1e-5 + 1e-5 * abs(expected)


def test_tokens_are_the_outputs(recording: Recording) -> None:
    for output in recording.outputs:
        request = recording.requests[output["request_id"]]
        rows = recording.tokens[request["request_id"]]
        assert [row["token_id"] for row in rows] == output["samples"][0]["token_ids"]
        assert [row["output_index"] for row in rows] == list(range(len(rows)))
        num_prompt = len(output["prompt_token_ids"])
        assert [row["position"] for row in rows] == list(range(num_prompt, num_prompt + len(rows)))
    assert len(recording.requests) == len(recording.outputs)
    assert recording.trace.num_rows("tokens") == sum(len(o["samples"][0]["token_ids"]) for o in recording.outputs)


def test_requests_are_what_the_caller_sees(recording: Recording) -> None:
    cached = 0
    for output in recording.outputs:
        request = recording.requests[output["request_id"]]
        assert request["prompt_token_ids"] == output["prompt_token_ids"]
        assert request["prompt_text"] == output["prompt"]
        assert request["num_cached_tokens"] == output["num_cached_tokens"]
        cached += output["num_cached_tokens"] > 0
    assert cached == 2, "the prefix cache was meant to be hit by two requests"


def test_values_equal_the_engines(recording: Recording) -> None:
    """The engine's sampled token and its 20 candidates, in whatever its mode calls logprobs."""
    mode = recording.mode  # type: ignore[attr-defined]
    checked = 0
    for row, entry, _request in recording.positions():
        value, rank = entry[str(row["token_id"])]
        checked += 1
        if mode == "processed_logprobs":
            assert close(row["processed_logprob"], value), (row["request_id"], row["output_index"])
            continue
        # Bit for bit: recorder and engine reduce the same tensor alike.
        assert row["logprob" if mode == "raw_logprobs" else "logit"] == np.float32(value)
        assert row["rank"] <= rank <= row["rank"] + row["num_tied"]
        _check_candidates(row, entry, mode)
    assert checked > 150


def _check_candidates(row: dict[str, Any], entry: dict[str, list[Any]], mode: str) -> None:
    theirs = sorted(((value, int(token_id)) for token_id, (value, _) in entry.items()), reverse=True)[:TOP_K]
    ours = dict(zip(row["top_token_ids"], row["top_logits"], strict=True))
    assert len(ours) == TOP_K
    last = min(ours.values())
    for value, token_id in theirs:
        if token_id not in ours:
            # Ties at the last place may be resolved otherwise.
            tied = value if mode == "raw_logits" else value + row["logsumexp"]
            assert close(tied, last), (row["request_id"], row["output_index"], token_id)
        elif mode == "raw_logits":
            assert ours[token_id] == np.float32(value)
        else:
            assert (
                close(ours[token_id] - row["logsumexp"], value) or abs(ours[token_id] - row["logsumexp"] - value) < 3e-5
            )


def test_processed_values_are_of_the_engines_tensor(recording: Recording) -> None:
    """kept_count, kept_mass and processed_logprob obey their definitions for each request's parameters."""
    sources = {row["processed_source"] for row, _, _ in recording.positions()}
    assert sources == {"engine"}
    for row, _, request in recording.positions():
        greedy = request["temperature"] == 0
        truncates = not greedy and (request["top_p"] < 1 or request["top_k"] > 0 or request["min_p"] > 0)
        plain = request["repetition_penalty"] == 1 and request.get("logit_bias") is None
        plain = plain and request["presence_penalty"] == 0 and request["frequency_penalty"] == 0
        if not truncates:
            assert row["kept_mass"] == 1.0
            assert row["kept_count"] == 49152
            if plain and (greedy or request["temperature"] == 1):
                assert close(row["processed_logprob"], row["logprob"])
        else:
            assert 1 <= row["kept_count"] < 49152
            if request["top_k"] > 0:
                assert row["kept_count"] <= request["top_k"] + 16  # ties at the last place are kept too
            if plain:
                scaled = _scaled_logprob(row, request["temperature"])
                if scaled is not None:
                    assert abs(scaled - math.log(row["kept_mass"]) - row["processed_logprob"]) < 2e-4


def _scaled_logprob(row: dict[str, Any], temperature: float) -> float | None:
    """The token's logprob after temperature; known from the row alone where temperature is 1."""
    return row["logit"] - row["logsumexp"] if temperature == 1 else None


def test_reported_logprob_is_what_the_client_got(recording: Recording) -> None:
    mode = recording.mode  # type: ignore[attr-defined]
    for row, entry, _ in recording.positions():
        if mode == "raw_logits":
            assert row["reported_logprob"] is None
        else:
            assert row["reported_logprob"] == np.float32(entry[str(row["token_id"])][0])


def test_statistics_follow_from_each_other(recording: Recording) -> None:
    for row, _, _ in recording.positions():
        assert abs(row["logprob"] - (row["logit"] - row["logsumexp"])) < 1e-5
        assert row["argmax_token_id"] == row["top_token_ids"][0]
        assert row["top1_margin"] == np.float32(row["top_logits"][0]) - np.float32(row["top_logits"][1])
        assert row["logit_min"] <= row["top_logits"][-1]
        assert 0 <= row["entropy"] <= math.log(49152)
        pairs = list(zip(row["top_logits"], row["top_token_ids"], strict=True))
        assert pairs == sorted(pairs, key=lambda pair: (-pair[0], pair[1]))


def test_runs_describe_the_engine(recording: Recording) -> None:
    runs = {row["process"]: row for row in recording.trace.read("runs").to_pylist()}
    assert runs.keys() == {"front_end", "worker"}
    assert len({row["run_id"] for row in runs.values()}) == 1
    worker = runs["worker"]
    assert (worker["engine"], worker["engine_version"], worker["engine_generation"]) == ("vllm", "0.32.0", "v1")
    assert worker["logprobs_mode"] == recording.mode  # type: ignore[attr-defined]
    assert worker["head_output_dtype"] == "bfloat16"
    assert worker["head_operand_dtype"] == "bfloat16"
    assert worker["prefix_caching"] is True
    assert json.loads(worker["engine_config"])["cache_config"]["enable_prefix_caching"] is True


def test_steps_account_for_every_token(recording: Recording) -> None:
    steps = {row["step_id"]: row for row in recording.trace.read("steps").to_pylist()}
    assert sorted(steps) == list(range(len(steps)))
    for step in steps.values():
        assert step["num_scheduled_tokens"] == step["num_prefill_tokens"] + step["num_decode_tokens"]
        assert step["num_scheduled_tokens"] == sum(step["scheduled_tokens"])
        assert step["num_requests"] == len(step["request_ids"])
    scheduled: dict[str, int] = {}
    for step in steps.values():
        for request_id, count in zip(step["request_ids"], step["scheduled_tokens"], strict=True):
            scheduled[request_id] = scheduled.get(request_id, 0) + count
    for request in recording.requests.values():
        # Every prompt token that was not cached, and every output token but the last, went through the model.
        rows = recording.tokens[request["request_id"]]
        expected = request["num_prompt_tokens"] - request["num_cached_tokens"] + len(rows) - 1
        assert scheduled[request["request_id"]] == expected
        for row in rows:
            step = steps[row["step_id"]]
            assert step["request_ids"][row["batch_index"]] == request["request_id"]
    prefill = sum(step["num_prefill_tokens"] for step in steps.values())
    assert prefill == sum(r["num_prompt_tokens"] - r["num_cached_tokens"] for r in recording.requests.values())
