"""The faults that the founding team found by hand, from traces of a real engine alone: which, with what parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tracekit
from commands import as_trainer, command, explained
from engine import run_engine

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def rollouts(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("founding") / "rollouts"
    run_engine("founding", model_path, folder)
    return folder


def test_raw_logprobs_against_a_trainers_processed_ones(rollouts: Path, model_path: Path, tmp_path: Path) -> None:
    """S1: the engine reports raw logprobs; the trainer divides by the temperature and truncates."""
    rollout = rollouts / "tempered"
    scores = tmp_path / "scores"
    command("replay", rollout, "-o", scores, "--backend", "hf", "--model", model_path, "--dtype", "float32")
    document = explained(rollout, as_trainer(rollout, scores, tmp_path / "trainer"))
    findings = {finding["cause"]: finding for finding in document["findings"]}
    assert [finding["cause"] for finding in document["findings"][:2]] == ["temperature", "truncation"]
    assert findings["temperature"]["parameters"]["temperature"] == pytest.approx(0.7)
    assert findings["temperature"]["parameters"]["temperature_estimated"] == pytest.approx(0.7, rel=0.01)
    with tracekit.connect(rollout) as session:
        kept = np.array([mass for (mass,) in session.sql("SELECT kept_mass FROM tokens WHERE kept_mass < 1").rows()])
    assert findings["truncation"]["parameters"]["mean_offset"] == pytest.approx(-np.log(kept).mean(), rel=0.01)
    assert document["residual"]["k2"] < 0.05


@pytest.mark.parametrize("means", ["head", "engine"])
def test_a_head_in_fp32(rollouts: Path, model_path: Path, tmp_path: Path, means: str) -> None:
    """S4: the last projection's output, rounded to bf16 on one side: by the head alone, and by the engine's own."""
    rollout, other = rollouts / "plain", tmp_path / "other"
    how = {
        "head": ["--backend", "head", "--head-dtype", "float32"],
        "engine": ["--backend", "vllm", "--engine-arg", 'hf_overrides={"head_dtype": "float32"}'],
    }[means]
    command("replay", rollout, "-o", other, "--model", model_path, *how)
    document = explained(rollout, other)
    first = document["findings"][0]
    assert first["cause"] == "head_output_rounding"
    assert (first["parameters"]["rounded_side"], first["parameters"]["dtype"]) == ("a", "bfloat16")
    assert first["shares"]["k2"] > (0.9 if means == "head" else 0.3)
    if means == "head":
        assert first["parameters"]["equal_when_rounded"] > 0.999
