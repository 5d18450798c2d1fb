"""What can only be tested on a GPU: `make test-gpu`, on a machine with CUDA and vLLM. Not part of `make test`.

It has not been run yet: no machine with a GPU was at hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import run_engine
from tracekit.record import RecordConfig
from tracekit.record.capture import Drawn, TokenCapture
from tracekit.record.device import mark
from tracekit.record.rows import TokenReducer
from tracekit.record.selection import Choice

NUM_ROWS, VOCAB = 64, 152_064
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.fail("these tests need a CUDA device; `make test` holds the ones that do not")


def _capture(device: str, seed: int) -> TokenCapture:
    random = torch.Generator().manual_seed(seed)
    raw = (torch.randn(NUM_ROWS, VOCAB, generator=random) * 4).bfloat16().to(device)
    drawn = raw.float() / 0.8
    drawn[drawn < drawn.topk(50, dim=1).values[:, -1:]] = -torch.inf
    rows = np.arange(NUM_ROWS)
    return TokenCapture(
        step_id=seed,
        request_ids=[f"r{i}" for i in range(NUM_ROWS)],
        logits_row_R=rows,
        sample_R=rows,
        batch_index_R=rows,
        position_R=torch.arange(NUM_ROWS, device=device),
        num_prompt_R=np.zeros(NUM_ROWS, np.int64),
        token_ids_S=drawn.argmax(1),
        raw_LV=raw,
        drawn=(Drawn(drawn),) if seed % 2 else (),
        hidden_LH=raw[:, :128].clone(),
        ready=mark(raw),
    )


def _reducer() -> TokenReducer:
    reducer = TokenReducer(RecordConfig(trace="unused", top_k=20, logits=True))
    for i in range(NUM_ROWS):
        kinds: list[dict[str, object]] = [{}, {"top_p": 0.9}, {"top_k": 40, "min_p": 0.01}, {"repetition_penalty": 1.1}]
        row = {"request_id": f"r{i}", "temperature": 0.8, "prompt_token_ids": [1, 2, 3], **kinds[i % 4]}
        reducer.add_request(row, (), Choice(True, True, True))
    return reducer


@contextlib.contextmanager
def _no_synchronisation() -> Iterator[None]:
    """Makes every call that waits for a device raise, but for those on events."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_the_host(seed: int) -> None:
    with torch.inference_mode():
        expected = dict(_reducer().reduce(_capture("cpu", seed)))
        found = dict(_reducer().reduce(_capture("cuda", seed)))
    exact = ("token_id", "logit", "rank", "num_tied", "top_token_ids", "top_logits", "logit_min", "argmax_token_id")
    for name in exact:
        np.testing.assert_array_equal(found["tokens"][name], expected["tokens"][name], err_msg=name)
    for name in ("logprob", "logsumexp", "entropy", "processed_logprob", "kept_mass"):
        np.testing.assert_allclose(found["tokens"][name], expected["tokens"][name], rtol=1e-5, atol=2e-5, err_msg=name)
    for table in ("hidden", "logits"):
        np.testing.assert_array_equal(found[table][table], expected[table][table])


@pytest.mark.parametrize("seed", range(2))
def test_nothing_waits_for_the_device(seed: int) -> None:
    reducer, capture = _reducer(), _capture("cuda", seed)
    with torch.inference_mode():
        reducer.reduce(_capture("cuda", seed))  # allocates what is allocated once
        torch.cuda.synchronize()
        with _no_synchronisation():
            assert reducer.reduce(capture)


def test_an_engine_samples_the_same_tokens(model_path: Path, tmp_path: Path) -> None:
    """With CUDA graphs, async scheduling and the default sampler of the device."""
    run_engine("harmless", model_path, tmp_path / "rounds.json", tmp_path / "trace", env={"TRACEKIT_TEST_EAGER": "0"})
    rounds = json.loads((tmp_path / "rounds.json").read_text())
    assert rounds["on"] == rounds["off"] == rounds["off_again"] == rounds["after"]


def test_what_it_costs(model_path: Path, tmp_path: Path) -> None:
    """Prints the table of `make bench`; figures are read, not asserted."""
    command = [
        sys.executable,
        REPOSITORY / "tools" / "bench.py",
        "--model",
        model_path,
        "--out",
        tmp_path / "bench.json",
    ]
    subprocess.run([*map(str, command), "--graphs"], check=True, env=dict(os.environ))
    assert json.loads((tmp_path / "bench.json").read_text())["batches"]
