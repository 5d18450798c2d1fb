"""Weights that change in the midst of requests, found from traces alone: the step, the versions, and the KV cache."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tracekit
from commands import as_trainer, command, explained
from engine import run_engine

pytestmark = pytest.mark.engine

# Of the root mean square of each matrix.
PERTURBATION = 0.06


@dataclass(frozen=True)
class Rollout:
    """A recorded rollout, and what the program that made it knows.

    Attributes:
        trace: of it.
        step: the first under the new weights.
        version: int64 [N], by request and output index: 0 the old weights, 1 the new ones.
        is_stale: bool [N], whether a token attended to KV entries of the old weights and has the new ones.
    """

    trace: Path
    step: int
    version: np.ndarray
    is_stale: np.ndarray

    @classmethod
    def of(cls, trace: Path) -> Rollout:
        known = json.loads(trace.with_suffix(".json").read_text())
        version, is_stale = [], []
        for name in sorted(known["versions"]):
            own = known["versions"][name]
            # What ran through the change, and what found the handbook in the prefix cache afterwards.
            holds_old = own[0] == 0 or int(name.rpartition("-")[2]) % 3 == 1
            version += own
            is_stale += [one == 1 and holds_old and trace.name == "kept" for one in own]
        return cls(trace, known["step"], np.array(version), np.array(is_stale))

    def differences(self, other: Path) -> np.ndarray:
        """Returns processed logprobs of another trace less those of this one, float64 [N]."""
        values = []
        for trace in (self.trace, other):
            with tracekit.connect(trace) as session:
                ids = dict(session.sql("SELECT request_id, external_id FROM requests").rows())
                rows = session.sql("SELECT request_id, output_index, processed_logprob FROM tokens").rows()
            values.append([value for *_, value in sorted((ids[name], index, value) for name, index, value in rows)])
        return np.array(values[1], np.float64) - np.array(values[0], np.float64)


@pytest.fixture(scope="module")
def new(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of other weights, as after some training."""
    out = tmp_path_factory.mktemp("checkpoints") / "new"
    shutil.copytree(model_path, out, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {}
    for name, tensor in load_file(model_path / "model.safetensors").items():
        values = tensor.float().numpy()
        if values.ndim == 2 and "embed" not in name:
            noise = np.random.default_rng(list(name.encode())).standard_normal(values.shape, np.float32)
            values = values + PERTURBATION * np.sqrt(np.mean(np.square(values, dtype=np.float64))) * noise
        tensors[name] = torch.from_numpy(np.asarray(values, np.float32)).to(tensor.dtype)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def rollouts(model_path: Path, new: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rollout]:
    folder = tmp_path_factory.mktemp("in-flight") / "rollouts"
    run_engine("in_flight", model_path, new, folder)
    return {name: Rollout.of(folder / name) for name in ("kept", "cleared")}


@pytest.mark.parametrize("name", ["kept", "cleared"])
def test_a_trainer_with_the_new_weights(name: str, rollouts: dict[str, Rollout], new: Path, tmp_path: Path) -> None:
    """S3: the step, the versions, and whether tokens since then attended to entries that the old weights made."""
    rollout = rollouts[name]
    command("replay", rollout.trace, "-o", tmp_path / "scores", "--model", new, "--dtype", "float32")
    trainer = as_trainer(rollout.trace, tmp_path / "scores", tmp_path / "trainer", weight_version=1)
    document = explained(rollout.trace, trainer)
    found = {finding["cause"]: finding for finding in document["findings"]}
    assert list(found) == (["weight_update", "stale_kv"] if name == "kept" else ["weight_update"])
    told = found["weight_update"]["parameters"]
    assert (told["versions"], told["agrees_at_versions"], told["steps"]) == ([0], [1], [rollout.step])
    assert told["kv"] == name

    d = rollout.differences(tmp_path / "scores")
    groups = {"weight_update": rollout.version == 0, "stale_kv": rollout.is_stale}
    clean = np.mean(d[(rollout.version == 1) & ~rollout.is_stale] ** 2)
    for cause, finding in found.items():
        touched = groups[cause]
        assert finding["num_tokens"] == np.sum(touched)
        share = np.sum(d[touched] ** 2 - clean) / np.sum(d**2)
        assert finding["shares"]["k2"] == pytest.approx(share, abs=0.02)
    assert document["residual"]["k2"] < 0.05


def test_a_trainer_with_the_old_weights(rollouts: dict[str, Rollout], model_path: Path, tmp_path: Path) -> None:
    rollout = rollouts["kept"]
    command("replay", rollout.trace, "-o", tmp_path / "old", "--model", model_path, "--dtype", "float32")
    document = explained(rollout.trace, tmp_path / "old")
    (finding,) = document["findings"]
    assert finding["cause"] == "weight_update"
    told = finding["parameters"]
    assert (told["versions"], told["agrees_at_versions"], told["steps"]) == ([1], [0], [rollout.step])
    assert finding["num_tokens"] == np.sum(rollout.version == 1)


@pytest.mark.parametrize("name", ["kept", "cleared"])
def test_each_token_under_its_own_weights(
    name: str, rollouts: dict[str, Rollout], model_path: Path, new: Path, tmp_path: Path
) -> None:
    """What a trainer computes that knows the versions: only entries that were kept make a difference then."""
    rollout = rollouts[name]
    weights = ["--weights", f"0={model_path}", "--weights", f"1={new}", "--weights-schedule", "recorded"]
    schedule = [*weights, "--kv", "clear", "--mode", "decode", "--dtype", "float32"]
    command("replay", rollout.trace, "-o", tmp_path / "own", *schedule)
    document = explained(rollout.trace, tmp_path / "own")
    found = {finding["cause"]: finding for finding in document["findings"]}
    assert list(found) == (["stale_kv"] if name == "kept" else [])
    if name == "kept":
        assert found["stale_kv"]["parameters"]["steps"] == [rollout.step]
        assert found["stale_kv"]["num_tokens"] == np.sum(rollout.is_stale)
        assert found["stale_kv"]["shares"]["k2"] > 0.9
