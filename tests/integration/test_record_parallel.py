"""Several ranks write one trace: each sampled row once, by the rank that owns it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import run_engine
from tiny_model import make_tiny_model
from tracekit.store import Trace

pytestmark = pytest.mark.engine

STEPS_PER_RANK = 2**40


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def _run(how: str, model: Path, folder: Path) -> tuple[dict[str, Any], Trace]:
    run_engine("parallel", model, folder / "outputs.json", folder / "trace", how)
    return json.loads((folder / "outputs.json").read_text()), Trace(folder / "trace")


def _assert_every_token_once(outputs: dict[str, Any], trace: Trace) -> None:
    requests = trace.read("requests").to_pylist()
    external = {row["request_id"]: row["external_id"] for row in requests if row["external_id"]}
    found: dict[str, dict[int, Any]] = {}
    for row in trace.read("tokens").to_pylist():
        places = found.setdefault(external[row["request_id"]], {})
        assert row["output_index"] not in places
        places[row["output_index"]] = row
    assert found.keys() == outputs.keys()
    for request_id, output in outputs.items():
        rows = [found[request_id][i] for i in range(len(found[request_id]))]
        assert [row["token_id"] for row in rows] == output["token_ids"]
        assert [row["logprob"] for row in rows] == [np.float32(value) for value in output["logprobs"]]
    steps = {row["step_id"]: row["request_ids"] for row in trace.read("steps").to_pylist()}
    assert len(steps) == trace.num_rows("steps")
    for row in trace.read("tokens").to_pylist():
        assert steps[row["step_id"]][row["batch_index"]] == row["request_id"]
    assert {row["kind"] for row in trace.read("events").to_pylist()} == {"writer_closed"}


def test_tensor_parallel_ranks_sample_alike_and_the_first_one_writes(tiny: Path, tmp_path: Path) -> None:
    outputs, trace = _run("tensor", tiny, tmp_path)
    _assert_every_token_once(outputs, trace)
    runs = trace.read("runs").to_pylist()
    assert sorted((row["process"], row["tp_rank"], row["tp_size"]) for row in runs if row["process"] == "worker") == [
        ("worker", 0, 2)
    ]


def test_data_parallel_ranks_each_write_their_own(tiny: Path, tmp_path: Path) -> None:
    outputs, trace = _run("data", tiny, tmp_path)
    _assert_every_token_once(outputs, trace)
    runs = [row for row in trace.read("runs").to_pylist() if row["process"] == "worker"]
    assert sorted(row["dp_rank"] for row in runs) == [0, 1]
    assert len({row["run_id"] for row in runs}) == 1
    assert len({row["writer"] for row in runs}) == 2
    ranks = {row["step_id"] // STEPS_PER_RANK for row in trace.read("steps").to_pylist()}
    assert ranks == {0, 1}, "both ranks were meant to get requests"
