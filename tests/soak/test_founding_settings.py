"""V1's defaults against settings like V0's: which of them matter, and by how much, from traces and replays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracekit
from commands import command, explained
from engine import run_engine

pytestmark = pytest.mark.engine

RUNS = Path(__file__).parents[1] / "integration" / "engine_runs"
# In float32: what batches and the cache change is the rounding of sums, in any dtype.
DTYPE = "float32"
# What explain calls each.
FACTORS = {
    "prefix_cache": "cache",
    "chunked_prefill": "chunked_prefill",
    "batch_dependence": "batch",
    "async_scheduling": "async_scheduling",
}
LIKE_V0 = {"cache": "off", "chunked_prefill": "off", "batch": "2", "async_scheduling": "off"}
ARGUMENTS = (
    "enable_prefix_caching=false",
    "enable_chunked_prefill=false",
    "max_num_seqs=2",
    "async_scheduling=false",
)


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which vLLM finds the plugin that leaves async scheduling as it is asked for."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "scheduling_ahead.py").write_text((RUNS / "scheduling_ahead.py").read_text())
    info = folder / "scheduling_ahead-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scheduling-ahead\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\nscheduling_ahead = scheduling_ahead:allow\n")
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}


@pytest.fixture(scope="module")
def rollout(model_path: Path, ahead: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    run_engine("v1_defaults", model_path, DTYPE, folder, env=ahead)
    return folder / "rollout"


def logprobs(trace: Path) -> np.ndarray:
    """Raw logprobs in one order for all replays of a trace, float64 [N]."""
    with tracekit.connect(trace) as session:
        rows = session.sql("SELECT request_id, output_index, logprob FROM tokens").rows()
    return np.array([value for *_, value in sorted(rows)], np.float64)


def test_the_settings_that_matter_are_told_from_those_that_do_not(
    rollout: Path, model_path: Path, ahead: dict[str, str], tmp_path: Path
) -> None:
    """S2: what takes A to B, with shares that add up, and what does not, held against NumPy on the replays."""
    b, model = tmp_path / "b", ["--backend", "vllm", "--model", str(model_path)]
    given = [part for argument in ARGUMENTS for part in ("--engine-arg", argument)]
    command("replay", rollout, "-o", b, *model, *given, env=ahead)
    vary = "cache,chunked_prefill,batch=2,async_scheduling"
    out = ["--out", tmp_path / "replays", "--format", "json"]
    found: dict[str, Any] = json.loads(
        command("bisect", rollout, "--against", b, *model, "--vary", vary, *out, env=ahead)
    )
    paths = {step["label"]: step["path"] for step in found["steps"]}
    scores = {label: logprobs(Path(path)) for label, path in paths.items() if path is not None}
    values = {"a": logprobs(rollout), "b": logprobs(b)}
    d = values["b"] - values["a"]
    assert np.any(d)
    # The engine that recorded gives the recording back where its batches are the recorded ones.
    assert np.array_equal(scores["baseline"], values["a"])
    assert found["is_settled"]
    left = np.sum((values["b"] - scores[found["target"]]) ** 2) / np.sum(d**2)
    assert left <= 0.01

    factors = {one["name"]: one for one in found["factors"]}
    moving = [name for name, one in factors.items() if one["verdict"] == "moves A to B"]
    assert moving
    assert found["target"] == " + ".join(f"{name}={LIKE_V0[name]}" for name in moving)
    shares = sum(factors[name]["share"]["k2"] for name in moving) + found["residual_share"]["k2"]
    assert shares == pytest.approx(1, abs=1e-6)
    step = scores[found["target"]] - values["a"]
    assert sum(factors[name]["forward"]["k2"] for name in moving) == pytest.approx(step @ d / (d @ d), abs=1e-6)
    for name, one in factors.items():
        alone = scores[f"{name}={LIKE_V0[name]}"]
        assert (one["verdict"] == "no effect") == np.array_equal(alone, scores["baseline"]), name
        removes = 1 - np.sum((values["b"] - alone) ** 2) / np.sum(d**2)
        assert one["removes"] == pytest.approx(removes, abs=1e-6)
        if name not in moving:
            assert one["share"]["k2"] == 0

    # From both traces alone: all that matters is named, and what cannot be told apart is not said to be found.
    document = explained(rollout, b)
    named = {cause for finding in document["findings"] for cause in (finding["cause"], *finding["rivals"])}
    assert set(moving) <= {FACTORS.get(cause) for cause in named | document["undecided"].keys()}
    for finding in document["findings"]:
        assert finding["verdict"] == "possible" or FACTORS.get(finding["cause"]) in moving, finding


def test_a_switch_that_the_engine_does_not_take_is_refused(rollout: Path, model_path: Path, tmp_path: Path) -> None:
    """Without the plugin, a CPU schedules no step ahead: a replay that would is none."""
    from click.testing import CliRunner

    from tracekit.cli.main import cli

    arguments = ["--backend", "vllm", "--model", str(model_path), "--engine-arg", "async_scheduling=true"]
    done = CliRunner().invoke(cli, ["replay", str(rollout), "-o", str(tmp_path / "out"), *arguments])
    assert "was given async_scheduling=true, and runs with false" in f"{done.output}{done.exception}"
    assert not (tmp_path / "out").exists()
