"""The head alone, from what a real engine recorded: its own logits bit for bit, and a float64 product's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors

pytestmark = pytest.mark.engine

ROLLOUT = Path(__file__).parents[2] / "tools" / "demo_rollout.py"
Key = tuple[str, int]


def tracekit(*args: object) -> None:
    quiet = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    # In one process an engine starts sooner.
    env = quiet | dict(os.environ) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = [sys.executable, "-m", "tracekit.cli.main", *map(str, args)]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]


def whole_rows(trace: Path, table: str) -> dict[Key, npt.NDArray[np.float32]]:
    """Rows of logits or hidden states, straight from their Parquet files."""
    found = pa.concat_tables(pq.read_table(path) for path in sorted((trace / table).glob("*.parquet")))
    keys = zip(found.column("request_id").to_pylist(), found.column("output_index").to_pylist(), strict=True)
    values: Any = found.column(table).combine_chunks()
    return dict(zip(keys, values.flatten().to_numpy().reshape(len(found), -1), strict=True))


def test_recorded_hidden_states_give_the_recorded_logits(model_path: Path, tmp_path: Path) -> None:
    run, bf16, fp32 = (tmp_path / name for name in ("run", "bf16", "fp32"))
    tracekit("record", "-o", run, "--hidden", "--logits", "--first", 8, "--", sys.executable, ROLLOUT, model_path)
    settings = ("--backend", "head", "--model", model_path, "--logits")
    tracekit("replay", run, "-o", bf16, "--head-dtype", "bfloat16", *settings)
    tracekit("replay", run, "-o", fp32, "--head-dtype", "float32", *settings)

    recorded, hidden = whole_rows(run, "logits"), whole_rows(run, "hidden")
    in_bf16, in_fp32 = whole_rows(bf16, "logits"), whole_rows(fp32, "logits")
    assert len(recorded) > 200
    assert recorded.keys() == in_bf16.keys() == in_fp32.keys()
    with safetensors.safe_open(model_path / "model.safetensors", "pt") as tensors:
        weight = tensors.get_tensor("model.embed_tokens.weight").double().numpy()
    for key, row in recorded.items():
        np.testing.assert_array_equal(in_bf16[key], row)
        np.testing.assert_allclose(in_fp32[key], hidden[key].astype(np.float64) @ weight.T, atol=1e-4)
