"""The head backend: a last projection alone, from recorded hidden states, against NumPy and the models themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch

import reference
from architectures import CONFIGS, random_model
from factories import MadeRequest, make_request, make_trace
from replayed import odd_values
from tracekit.errors import ConfigError, InputError, ModelError
from tracekit.replay import replay
from tracekit.replay.head import Projection
from tracekit.store import Trace, TraceWriter

LENGTHS = {"a": 4, "b": 1, "c": 9}


pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    model = random_model(CONFIGS[name], dtype)
    model.save_pretrained(folder)
    return model


def make_parent(path: Path, dtype: torch.dtype = torch.float32, size: int = 32) -> dict[str, torch.Tensor]:
    """A recording with hidden states; returns them."""
    random = torch.Generator().manual_seed(1)
    requests: list[MadeRequest] = []
    hidden = {}
    for name, length in LENGTHS.items():
        hidden[name] = (torch.randn(length, size, generator=random) * 2).to(dtype)
        requests.append(make_request(name, token_ids=torch.randint(0, 118, (length,), generator=random).tolist()))
    make_trace(path, requests=requests)
    add_hidden(path, hidden)
    return hidden


def add_hidden(path: Path, hidden: dict[str, torch.Tensor], first: int = 0) -> None:
    with TraceWriter(path, run_id="run", writer="hidden") as writer:
        for name, rows in reversed(hidden.items()):
            index = np.arange(first, first + len(rows))
            keys = {"request_id": name, "output_index": index, "position": index + 3}
            dtype = str(rows.dtype).removeprefix("torch.")
            writer.append("hidden", keys | {"hidden": rows.float().numpy(), "source_dtype": dtype})


def logits_of(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    found: dict[str, list[Any]] = {}
    for row in sorted(Trace(path).read("logits").to_pylist(), key=lambda row: (row["request_id"], row["output_index"])):
        found.setdefault(row["request_id"], []).append(row["logits"])
    return {name: np.array(rows, np.float64) for name, rows in found.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_that_the_model_makes_of_them(name: str, tmp_path: Path) -> None:
    model = make_model(name, tmp_path / "model")
    hidden = make_parent(tmp_path / "parent")
    replay(tmp_path / "parent", tmp_path / "out", backend="head", model=tmp_path / "model", logits=True)
    weight = model.get_output_embeddings().weight.detach().double().numpy()
    bias = getattr(model.get_output_embeddings(), "bias", None)
    found = logits_of(tmp_path / "out")
    assert found.keys() == hidden.keys()
    for request_id, rows in hidden.items():
        expected = rows.double().numpy() @ weight.T + (0 if bias is None else bias.detach().double().numpy())
        if name == "gemma2":
            expected = 0.5 * np.tanh(expected / 0.5)
        expected *= {"cohere": 0.25, "granite": 1 / 8}.get(name, 1)
        np.testing.assert_allclose(found[request_id], expected, atol=2e-5)
    tokens = {
        (row["request_id"], row["output_index"]): row for row in Trace(tmp_path / "out").read("tokens").to_pylist()
    }
    for (request_id, index), row in tokens.items():
        logprobs = reference.log_softmax(found[request_id][index])
        assert row["logprob"] == pytest.approx(logprobs[row["token_id"]], abs=5e-6)


@pytest.mark.parametrize(
    ("operands", "output"),
    [("float32", None), ("bfloat16", None), ("bfloat16", "float32"), ("float16", None), ("float32", "bfloat16")],
)
def test_dtypes_of_the_head(operands: str, output: str | None, tmp_path: Path) -> None:
    model = make_model("llama", tmp_path / "model", torch.bfloat16)
    hidden = make_parent(tmp_path / "parent", torch.bfloat16)
    options = {"head_dtype": operands, "head_output_dtype": output}
    replay(tmp_path / "parent", tmp_path / "out", backend="head", model=tmp_path / "model", logits=True, **options)
    weight = model.get_output_embeddings().weight.detach()
    rounded = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    given = rounded[output or operands]
    for request_id, rows in logits_of(tmp_path / "out").items():
        left, right = hidden[request_id].to(rounded[operands]), weight.to(rounded[operands])
        exact = left.double().numpy() @ right.double().numpy().T
        step = {torch.float32: 0, torch.bfloat16: 2**-8, torch.float16: 2**-11}[given] * np.abs(exact)
        np.testing.assert_array_less(np.abs(rows - exact), 1e-5 + step)
        np.testing.assert_array_equal(torch.from_numpy(rows).to(given).double().numpy(), rows)
        if operands == "bfloat16" and output is None:
            # What the model itself gives, bit for bit.
            own = torch.cat([hidden[name] for name in LENGTHS]) @ weight.T
            first = sum(length for name, length in LENGTHS.items() if name < request_id)
            np.testing.assert_array_equal(rows, own[first : first + len(rows)].double().numpy())
    (run,) = Trace(tmp_path / "out").read("runs").to_pylist()
    assert (run["head_weight_dtype"], run["head_operand_dtype"], run["head_output_dtype"]) == (
        *("bfloat16", operands),
        output or operands,
    )
    assert run["dtype"] is None
    assert not odd_values(tmp_path / "out")


@pytest.mark.parametrize(
    ("dtype", "expected"), [("bfloat16", [4, *[2] * 3, *[1] * 5]), ("float16", [14]), ("float32", [14])]
)
def test_products_in_the_recorded_dtype_have_as_many_rows_as_the_recorded_batches(
    dtype: str, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are chosen by the number of rows, and round otherwise."""
    model = make_model("llama", tmp_path / "model", torch.bfloat16)
    hidden = make_parent(tmp_path / "parent", torch.bfloat16)
    with TraceWriter(tmp_path / "parent", run_id="run", writer="steps") as writer:
        # In the first step there was one more, which is not in the trace.
        writer.append("steps", {"step_id": list(range(9)), "num_requests": [4, 2, 2, 2, 1, 1, 1, 1, 1]})
    sizes, forward = [], Projection.forward

    def counted(self: Projection, rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return forward(self, rows)

    monkeypatch.setattr(Projection, "forward", counted)
    settings: dict[str, Any] = {"backend": "head", "model": tmp_path / "model", "logits": True}
    replay(tmp_path / "parent", tmp_path / "out", head_dtype=dtype, **settings)
    assert sorted(sizes, reverse=True) == expected
    weight = model.get_output_embeddings().weight.detach().double().numpy()
    for request_id, rows in logits_of(tmp_path / "out").items():
        exact = hidden[request_id].double().numpy() @ weight.T
        np.testing.assert_allclose(rows, exact, rtol=2**-8, atol=1e-5)


def test_only_the_head_is_read(tmp_path: Path) -> None:
    """A folder with the head and the configuration is enough."""
    weight = torch.randn(120, 32)
    (tmp_path / "model").mkdir()
    safetensors.torch.save_file({"lm_head.weight": weight}, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"vocab_size": 118, "tie_word_embeddings": False}))
    hidden = make_parent(tmp_path / "parent")
    replay(tmp_path / "parent", tmp_path / "out", backend="head", model=tmp_path / "model", logits=True)
    found = logits_of(tmp_path / "out")["c"]
    np.testing.assert_allclose(found, hidden["c"].double().numpy() @ weight[:118].double().numpy().T, atol=2e-5)


def test_tokens_without_hidden_states_are_left_out_and_counted(tmp_path: Path) -> None:
    make_model("llama", tmp_path / "model")
    path, rows = tmp_path / "parent", torch.randn(9, 32)
    make_trace(path, requests=[make_request(name, token_ids=[5] * length) for name, length in LENGTHS.items()])
    add_hidden(path, {"c": rows[:6]})
    add_hidden(path, {"c": rows[7:]}, first=7)
    add_hidden(path, {"a": rows[:2]}, first=1)
    summary = replay(path, tmp_path / "out", backend="head", model=tmp_path / "model")
    assert (summary.num_sequences, summary.num_tokens, summary.num_unscored_tokens) == (1, 6, 3 + 4 + 1)


def test_what_does_not_fit_is_an_error_in_one_line(tmp_path: Path) -> None:
    make_model("llama", tmp_path / "model")
    make_parent(tmp_path / "parent")
    make_parent(tmp_path / "narrow", size=16)
    make_trace(tmp_path / "without")
    models: dict[str, dict[str, Any]] = {
        "odd": {"some_logit_scaling": 2.0},
        "both": {"tie_word_embeddings": False},
        "quantised": {"tie_word_embeddings": False},
        "empty": {},
    }
    weight = torch.randn(120, 32)
    tensors = {
        "odd": {"lm_head.weight": weight},
        "both": {"lm_head.weight": weight, "draft.lm_head.weight": weight.clone()},
        "quantised": {"lm_head.weight": weight.to(torch.int8)},
    }
    for name, config in models.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        if name in tensors:
            safetensors.torch.save_file(tensors[name], tmp_path / name / "model.safetensors")
    cases: list[tuple[type[InputError], str, str, str | None]] = [
        (InputError, "has no hidden states; record with --hidden", "without", "model"),
        (ModelError, "has hidden states of 16 entries, but the head takes 32", "narrow", "model"),
        (ModelError, r"what some_logit_scaling = 2\.0 does to logits is not known", "parent", "odd"),
        (ModelError, "its head is not to be told apart among", "parent", "both"),
        (ModelError, "is quantised", "parent", "quantised"),
        (ModelError, r"has no \*\.safetensors", "parent", "empty"),
        (ModelError, "no such model folder", "parent", "nowhere"),
        (ConfigError, "needs a model", "parent", None),
    ]
    for kind, message, parent, model in cases:
        with pytest.raises(kind, match=message) as info:
            replay(
                tmp_path / parent, tmp_path / "out", backend="head", model=None if model is None else tmp_path / model
            )
        assert info.value.exit_code == 2
        assert "\n" not in str(info.value)
        assert not list(tmp_path.glob("out*"))
