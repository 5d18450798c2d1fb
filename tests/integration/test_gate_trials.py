"""The trials of `make soak`, a few of them: the gate refuses a head in another precision, and lets repeats pass."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import gate_trials

pytestmark = pytest.mark.engine

NUM_TRIALS = 3


def test_planted_differences_are_refused_and_repeats_pass(shallow_model: Path, tmp_path: Path) -> None:
    outcomes = gate_trials.run_trials(shallow_model, tmp_path, NUM_TRIALS, ["head"], num_tokens=12)
    print("\n".join(gate_trials.report(outcomes)))
    assert [(outcome.kind, dict(outcome.codes), outcome.wrong) for outcome in outcomes] == [
        ("again", {0: NUM_TRIALS}, []),
        ("parted", {0: NUM_TRIALS}, []),
        ("head", {1: NUM_TRIALS}, []),
    ]
    planted = outcomes[-1]
    assert planted.failed["k3_kl < 1e-4"] == NUM_TRIALS
    assert len(set(planted.values)) == NUM_TRIALS, "trials repeat one sample"


def test_what_came_out_wrong_is_said() -> None:
    row = {"requirement": "k3_kl < 1e-4", "name": "k3_kl", "value": 1e-6, "floor": 1e-7, "verdict": "pass"}
    outcome = gate_trials.Outcome("head", expected=1)
    outcome.add(0, 1, {"requirements": [row | {"verdict": "FAIL", "passed": False}]})
    outcome.add(1, 0, {"requirements": [row | {"passed": True}]})
    text = "\n".join(gate_trials.report([outcome]))
    assert "head: 1 of 2 refused  [MISSED]" in text
    assert "WRONG: trial 1: k3_kl 1e-06 (pass)" in text
    assert "k3_kl < 1e-4: not met in 1, within noise in 0" in text
    figures = json.loads(json.dumps(vars(outcome)))
    assert (figures["codes"], figures["failed"]) == ({"1": 1, "0": 1}, {"k3_kl < 1e-4": 1})
