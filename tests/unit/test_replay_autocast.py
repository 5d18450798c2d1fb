"""The hf backend under torch.autocast, against one forward pass a sequence under it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers

import reference
from factories import make_request, make_trace
from replayed import scored
from tracekit.replay import replay
from tracekit.store import Trace

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = [(3, 5), (9, 2), (1, 7), (4, 4), (6, 1), (2, 8), (12, 3), (5, 20)]


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    random = np.random.default_rng(3)
    drawn = [[random.integers(0, 98, length).tolist() for length in lengths] for lengths in LENGTHS]
    requests = [
        make_request(f"r{number}", prompt=prompt, token_ids=output) for number, (prompt, output) in enumerate(drawn)
    ]
    return make_trace(tmp_path / "parent", requests=requests)


def expected(parent: Path, model: Path, dtype: torch.dtype, *, autocast: bool, head: str = "") -> npt.NDArray[Any]:
    """Each token's logprob; with a head in float32, from a float64 product of the hidden states."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    found = []
    for row in Trace(parent).read("requests").to_pylist():
        prompt, output = row["prompt_token_ids"], [t["token_id"] for t in scored(parent)[row["request_id"]]]
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            # Without the last token, as a replay reads it.
            given = loaded(input_ids=torch.tensor([(prompt + output)[:-1]]), output_hidden_states=True)
        logits = given.logits[0].double().numpy()
        if head == "float32":
            logits = given.hidden_states[-1][0].double().numpy() @ loaded.lm_head.weight.detach().double().numpy().T
        rows = logits[len(prompt) - 1 :]
        found += [reference.log_softmax(row_V)[token] for row_V, token in zip(rows, output, strict=True)]
    return np.array(found)


def logprobs(path: Path) -> npt.NDArray[Any]:
    found = scored(path)
    return np.array([row["logprob"] for number in range(len(LENGTHS)) for row in found[f"r{number}"]])


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_autocast_is_neither_float32_nor_bfloat16(mode: str, parent: Path, tiny_model: Path, tmp_path: Path) -> None:
    replay(parent, tmp_path / "out", model=tiny_model, autocast="bfloat16", mode=mode)
    found = logprobs(tmp_path / "out")
    noise = np.abs(found - expected(parent, tiny_model, torch.float32, autocast=True)).mean()
    others = [expected(parent, tiny_model, dtype, autocast=False) for dtype in (torch.float32, torch.bfloat16)]
    assert all(noise < np.abs(found - other).mean() / 2 for other in others)
    (run,) = Trace(tmp_path / "out").read("runs").to_pylist()
    assert (run["dtype"], run["head_operand_dtype"], run["head_output_dtype"]) == ("float32", "bfloat16", "bfloat16")
    assert run["head_weight_dtype"] == "float32"


def test_a_head_dtype_that_is_asked_for_holds(parent: Path, tiny_model: Path, tmp_path: Path) -> None:
    replay(parent, tmp_path / "out", model=tiny_model, autocast="bfloat16", head_dtype="float32")
    found = logprobs(tmp_path / "out")
    noise = np.abs(found - expected(parent, tiny_model, torch.float32, autocast=True, head="float32")).mean()
    assert noise < np.abs(found - expected(parent, tiny_model, torch.float32, autocast=True)).mean() / 2
    (run,) = Trace(tmp_path / "out").read("runs").to_pylist()
    assert (run["head_operand_dtype"], run["head_output_dtype"]) == ("float32", "float32")
