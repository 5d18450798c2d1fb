"""Mixture-of-experts routes: a trace holds those that the engine returns to its caller, at their positions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine import V2, run_engine
from tiny_model import make_tiny_model
from tracekit.store import Trace

pytestmark = pytest.mark.engine

NUM_LAYERS, NUM_EXPERTS, NUM_CHOSEN = 3, 4, 2
# Of the third request the caller wants none of the first three positions.
FIRST = [0, 0, 3]


def test_routes_are_those_the_engine_returns(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", num_experts=NUM_EXPERTS)
    run_engine("v2_routes", model, tmp_path / "out.json", tmp_path / "trace", engine=V2)
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["on"] == told["off"]

    trace = Trace(tmp_path / "trace")
    ids = {row["external_id"]: row["request_id"] for row in trace.read("requests").to_pylist() if row["external_id"]}
    found = {(row["request_id"], row["position"]): row["experts"] for row in trace.read("routes").to_pylist()}
    expected = {}
    for place, external_id in enumerate(told["external_ids"]):
        # The last token is sampled and goes through no layer.
        num_positions = told["num_prompt"][place] + len(told["on"][place]) - 1
        assert len(told["routes"][place]) == num_positions - FIRST[place]
        for position, experts in enumerate(told["routes"][place], start=FIRST[place]):
            expected[ids[external_id], position] = experts
    assert found == expected
    assert trace.num_rows("routes") == len(expected)
    chosen = {expert for experts in found.values() for of_layer in experts for expert in of_layer}
    assert chosen == set(range(NUM_EXPERTS)), "the routes of a few tokens were meant to differ"
    assert {(len(experts), len(of_layer)) for experts in found.values() for of_layer in experts} == {
        (NUM_LAYERS, NUM_CHOSEN)
    }
