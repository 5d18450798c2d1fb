"""Engines that bring the recorder's settings themselves, with no environment and no command around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import run_engine
from tracekit.analysis import connect
from tracekit.store import Trace

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def run(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, str]:
    folder = tmp_path_factory.mktemp("own")
    finished = run_engine("own_settings", model_path, folder / "outputs.json", folder / "trace")
    return json.loads((folder / "outputs.json").read_text()), folder / "trace", finished.stderr


def test_each_engine_is_a_run_of_the_one_trace(run: tuple[dict[str, Any], Path, str]) -> None:
    outputs, path, _ = run
    with connect(path) as session:
        rows = session.sql(
            "SELECT run_id, external_id, list(token_id ORDER BY output_index), any_value(len(top_token_ids)) "
            "FROM tokens JOIN requests USING (run_id, request_id) GROUP BY ALL ORDER BY min(arrival_ns)"
        ).rows()
        runs = session.sql("SELECT run_id, list(process ORDER BY process), min(started_ns) FROM runs GROUP BY 1").rows()
    assert [processes for _, processes, _ in runs] == [["front_end", "worker"]] * 2
    first, second = (run_id for run_id, _, _ in sorted(runs, key=lambda row: row[2]))
    sampled = [request["samples"][0]["token_ids"] for request in outputs["requests"]]
    assert [row[2] for row in rows] == sampled
    assert [row[:2] for row in rows] == [(first, "0"), (first, "1"), (second, "0"), (second, "1")]
    assert {row[3] for row in rows} == {5}


def test_the_trace_is_complete_and_tells_its_settings(run: tuple[dict[str, Any], Path, str]) -> None:
    _, path, _ = run
    trace = Trace(path)
    assert not list((path / "journal").rglob("*.zst"))
    rows = trace.read("runs", ["capture_config", "engine_config"]).to_pylist()
    captures = [json.loads(row["capture_config"]) for row in rows]
    assert {(config["trace"], config["top_k"], config["append"]) for config in captures} == {(str(path), 5, True)}
    assert {row["kind"] for row in trace.read("events").to_pylist()} == {"writer_closed"}


def test_wrong_settings_cost_one_line(run: tuple[dict[str, Any], Path, str]) -> None:
    outputs, path, errors = run
    complaints = [line for line in errors.splitlines() if "tracekit" in line]
    assert complaints == [
        "tracekit: recorder disabled, the engine goes on: additional_config['tracekit']: no such recorder setting "
        "'topk' (did you mean 'top_k'?)"
    ]
    assert not path.with_name("trace-wrong").exists()
    assert outputs["wrong"] == [request["samples"][0]["token_ids"] for request in outputs["requests"][:2]]
