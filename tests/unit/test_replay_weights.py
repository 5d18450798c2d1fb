"""Weights that change while sequences are decoded, against forward passes written out one by one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner

import reference
from factories import make_request, make_trace
from replayed import odd_values, scored
from tiny_model import make_tiny_llama
from tracekit.cli.replay import command
from tracekit.errors import ConfigError, ModelError, OutputExistsError
from tracekit.fingerprint import model_fingerprint
from tracekit.replay import Progress, driver, replay
from tracekit.store import Trace

VOCAB = 100
VERSIONS = {"a": [0, 0, 0, 1, 1, 1], "b": [1, 1], "c": [0, 2, 2, 2, 2], "d": [0] * 3, "e": [0, 1, 2, 2]}
PROMPTS = {name: list(range(3 + i, 8 + 3 * i)) for i, name in enumerate(VERSIONS)}
OUTPUTS = {name: [(7 * i + 3 * len(name) + ord(name)) % VOCAB for i in range(len(v))] for name, v in VERSIONS.items()}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three versions of a policy."""
    return {
        label: make_tiny_llama(tmp_path_factory.mktemp(label), seed=seed, tie_word_embeddings=True)
        for seed, label in enumerate(("first", "second", "2"))
    }


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    labels = ("first", "second", None)
    requests = [
        make_request(
            name,
            prompt=PROMPTS[name],
            token_ids=OUTPUTS[name],
            tokens={"weight_version": versions, "weight_label": [labels[version] for version in versions]},
        )
        for name, versions in VERSIONS.items()
    ]
    return make_trace(tmp_path / "parent", requests=requests)


def expected(models: dict[str, Path], name: str, *, clears: bool, head: torch.dtype | None = None) -> list[float]:
    """Each token's logprob from single steps with transformers' own cache."""
    policies = [transformers.LlamaForCausalLM.from_pretrained(path).eval() for path in models.values()]
    prompt, output, versions = PROMPTS[name], OUTPUTS[name], VERSIONS[name]
    found, cache, last = [], transformers.DynamicCache(), versions[0]
    with torch.inference_mode():
        for index, version in enumerate(versions):
            unread = prompt if index == 0 else [output[index - 1]]
            if clears and version != last:
                cache, unread = transformers.DynamicCache(), prompt + output[:index]
            last = version
            model = policies[version]
            hidden = model.model(input_ids=torch.tensor([unread]), past_key_values=cache, use_cache=True)[0][0, -1]
            weight = model.lm_head.weight
            if head is not None:
                hidden, weight = hidden.to(head), weight.to(head)
            logits = hidden.double().numpy() @ weight.double().numpy().T
            found.append(float(reference.log_softmax(logits)[output[index]]))
    return found


def history(versions: list[int]) -> list[tuple[int, list[int]]]:
    return [(version, versions[: index + 1]) for index, version in enumerate(versions)]


@pytest.mark.parametrize("limits", [{"max_num_seqs": 1}, {"max_num_seqs": 3, "batch_tokens": 4}, {}])
@pytest.mark.parametrize("kv", ["keep", "clear"])
def test_each_token_is_scored_under_its_weights(
    kv: str, limits: dict[str, int], models: dict[str, Path], parent: Path, tmp_path: Path
) -> None:
    weights = tuple(f"{label}={path}" for label, path in models.items())
    settings = {"mode": "decode", "weights": weights, "weights_schedule": "recorded", "kv": kv, **limits}
    replay(parent, tmp_path / "out", **settings)
    found = scored(tmp_path / "out")
    other = []
    for name in VERSIONS:
        logprobs = [row["logprob"] for row in found[name]]
        np.testing.assert_allclose(logprobs, expected(models, name, clears=kv == "clear"), atol=1e-5)
        other += list(np.abs(np.array(logprobs) - expected(models, name, clears=kv != "clear")))
        assert [row["weight_version"] for row in found[name]] == VERSIONS[name]
        oldest = [version if kv == "clear" else min(seen) for version, seen in history(VERSIONS[name])]
        assert [row["kv_weight_version_min"] for row in found[name]] == oldest
    # The two policies can be told apart, so that one would not pass for the other.
    assert max(other) > 1e-3


def test_a_head_of_its_own_dtype_changes_too(models: dict[str, Path], parent: Path, tmp_path: Path) -> None:
    weights = tuple(f"{label}={path}" for label, path in models.items())
    settings = {"mode": "decode", "weights": weights, "weights_schedule": "recorded"}
    replay(parent, tmp_path / "out", head_dtype="bfloat16", head_output_dtype="float32", **settings)
    for name, rows in scored(tmp_path / "out").items():
        wanted = expected(models, name, clears=False, head=torch.bfloat16)
        np.testing.assert_allclose([row["logprob"] for row in rows], wanted, atol=1e-5)


def test_the_first_checkpoint_is_the_model(models: dict[str, Path], parent: Path, tmp_path: Path) -> None:
    weights = [part for label, path in models.items() for part in ("--weights", f"{label}={path}")]
    schedule = [*weights, "--weights-schedule", "recorded", "--mode", "decode"]
    arguments = [str(parent), "-o", str(tmp_path / "out"), *schedule]
    done = CliRunner().invoke(command, [*arguments, "--model", str(models["first"])])
    assert done.exit_code == 2
    assert "--model and --weights both name the model; leave one of them out" in done.output
    assert not list(tmp_path.glob("out*"))
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    (run,) = Trace(tmp_path / "out").read("runs").to_pylist()
    assert (run["model"], run["model_fingerprint"]) == (str(models["first"]), model_fingerprint(models["first"]))
    found = json.loads(run["options"])["fingerprints"]
    assert found == {f"weights {label}": model_fingerprint(path) for label, path in models.items()}
    assert not odd_values(tmp_path / "out")


def test_other_weights_in_a_checkpoint_are_not_gone_on_with(
    models: dict[str, Path], parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SAVE_SECONDS", 0.0)
    copies = {label: shutil.copytree(path, tmp_path / label) for label, path in models.items()}
    settings: dict[str, Any] = {
        "mode": "decode",
        "weights": tuple(f"{label}={path}" for label, path in copies.items()),
        "weights_schedule": "recorded",
        "max_num_seqs": 1,
    }

    def stop(progress: Progress) -> None:
        if progress.num_tokens:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(parent, tmp_path / "out", progress=stop, **settings)
    shutil.copy(models["first"] / "model.safetensors", copies["2"])
    with pytest.raises(OutputExistsError, match=r"was begun with fingerprints .*, not .*weights 2"):
        replay(parent, tmp_path / "out", **settings)


def test_one_trace_for_each_checkpoint(models: dict[str, Path], parent: Path, tmp_path: Path) -> None:
    weights = [part for label, path in models.items() for part in ("--weights", f"{label}={path}")]
    done = CliRunner().invoke(command, [str(parent), "-o", str(tmp_path / "{label}.trace"), *weights])
    assert done.exit_code == 0, done.output
    for label, path in models.items():
        replay(parent, tmp_path / f"alone-{label}", model=path)
        found, alone = scored(tmp_path / f"{label}.trace"), scored(tmp_path / f"alone-{label}")
        for name in VERSIONS:
            assert [row["logprob"] for row in found[name]] == [row["logprob"] for row in alone[name]]
            assert {row["weight_label"] for row in found[name]} == {label}
    done = CliRunner().invoke(command, [str(parent), "-o", str(tmp_path / "one.trace"), *weights])
    assert done.exit_code == 2
    assert "name them apart by {label}, as in -o 'one-{label}.trace'" in done.output


def test_what_a_schedule_lacks_is_an_error_in_one_line(models: dict[str, Path], parent: Path, tmp_path: Path) -> None:
    first = f"first={models['first']}"
    make_trace(tmp_path / "unknown", requests=[make_request("x", tokens={"weight_version": None})])
    schedule = {"mode": "decode", "weights_schedule": "recorded"}
    cases: list[tuple[type[Exception], str, Path, dict[str, Any]]] = [
        (
            ModelError,
            r"tokens of weight version 1 \('second'\), but --weights names first",
            parent,
            {"weights": (first,)},
        ),
        (ModelError, "weights are not recorded", tmp_path / "unknown", {"weights": (first,)}),
        (ConfigError, "needs --mode decode", parent, {"weights": (first,), "mode": "prefill"}),
        (ConfigError, "needs the checkpoints", parent, {}),
        (ConfigError, "model and weights both name", parent, {"weights": (first,), "model": models["first"]}),
        (ConfigError, "weights are for a schedule", parent, {"weights": (first,), "weights_schedule": None}),
        (ConfigError, "weights 'first' is not of the kind LABEL=PATH", parent, {"weights": ("first",)}),
        (ConfigError, "weights 'first' is given twice", parent, {"weights": (first, first)}),
        (
            ConfigError,
            "kv 'keep' is for changes of weights: give --weights-schedule",
            parent,
            {"kv": "keep", "weights_schedule": None},
        ),
        (ConfigError, "kv 'kep' is not known .did you mean 'keep'", parent, {"weights": (first,), "kv": "kep"}),
    ]
    for kind, message, trace, options in cases:
        with pytest.raises(kind, match=message) as info:
            replay(trace, tmp_path / "out", **{**schedule, **options})
        assert "\n" not in str(info.value)
        assert not list(tmp_path.glob("out*"))
