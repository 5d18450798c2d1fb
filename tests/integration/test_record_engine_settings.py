"""Engines that bring the recorder's settings themselves, and one that the recorder does not know."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine import run_engine
from tracekit.analysis import connect
from tracekit.store import Trace

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def run(shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, str]:
    folder = tmp_path_factory.mktemp("own")
    finished = run_engine("own_settings", shallow_model, folder / "outputs.json", folder / "trace")
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


ODD_RELEASE = """
import functools
from tracekit.record.engines.patching import when_imported

def make_odd(module):
    # The engine still finds what it calls; its class no longer shows it.
    runner, sample = module.GPUModelRunner, module.GPUModelRunner._sample
    del runner._sample

    def find(self, name):
        if name == "_sample":
            return functools.partial(sample, self)
        raise AttributeError(name)

    runner.__getattr__ = find

when_imported("vllm.v1.worker.gpu_model_runner", make_odd)
"""


def test_a_release_that_is_not_as_expected_runs_unrecorded(
    run: tuple[dict[str, Any], Path, str], shallow_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(ODD_RELEASE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    program = Path(__file__).parent / "engine_runs" / "greedy.py"
    finished = subprocess.run(
        [
            "tracekit",
            "record",
            "-o",
            tmp_path / "trace",
            "--",
            sys.executable,
            program,
            shallow_model,
            tmp_path / "out.json",
        ],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    outputs = json.loads((tmp_path / "out.json").read_text())
    assert [request["samples"][0]["token_ids"] for request in outputs["requests"]] == run[0]["wrong"]

    version = importlib.metadata.version("vllm").partition("+")[0]
    missing = "vllm.v1.worker.gpu_model_runner: type object 'GPUModelRunner' has no attribute '_sample'"
    reason = f"vLLM {version} has no {missing}"
    said = [line for line in finished.stderr.splitlines() if "tracekit" in line]
    assert sum(f"recorder disabled, the engine goes on: {reason}" in line for line in said) == 1
    assert sum("no engine step was recorded" in line and reason in line for line in said) == 1
    rows = {row["process"]: row for row in Trace(tmp_path / "trace").read("runs").to_pylist()}
    assert {process: row["disabled_reason"] for process, row in rows.items()} == {"front_end": None, "worker": reason}
    assert rows["worker"]["engine_version"] == rows["front_end"]["engine_version"] == version
    assert Trace(tmp_path / "trace").num_rows("tokens") == 0
