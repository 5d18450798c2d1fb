"""The many hidden states of `make soak`, fewer of them: memory does not grow with their number."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from replay_hidden import Figures, replay_hidden

NUM_ENTRIES = 1024
# Enough of them for all windows and buffers to be full.
NUM_FEW, NUM_MANY = 20_000, 60_000
# Of what the many are more, in 32 bits, as a replay reads them.
BYTES_OF_MORE = (NUM_MANY - NUM_FEW) * NUM_ENTRIES * 4


def test_memory_does_not_grow_with_hidden_states(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    weight = torch.randn(64, NUM_ENTRIES, generator=torch.Generator().manual_seed(0)).bfloat16()
    safetensors.torch.save_file({"lm_head.weight": weight}, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({"vocab_size": len(weight)}))
    found = {}
    for num_rows in (NUM_FEW, NUM_MANY):
        folder = tmp_path / str(num_rows)
        folder.mkdir()
        found[num_rows] = replay_hidden(model, folder, num_rows)
        assert found[num_rows].faults() == []
        assert found[num_rows].num_scored == num_rows
    growth = found[NUM_MANY].peak_bytes - found[NUM_FEW].peak_bytes
    print(f"memory grew by {growth / 2**20:.0f} MiB")
    assert growth < BYTES_OF_MORE


def test_what_misses_a_goal_is_said() -> None:
    good = Figures(10, 10, seconds=1.0, peak_bytes=10**9, disk_bytes=1, max_difference=1e-6)
    assert good.faults() == []
    for change, message in (
        ({"num_scored": 9}, "9 of 10 rows were scored"),
        ({"peak_bytes": 2 * 10**9}, "memory reached 2.00 GB, 2 GB are allowed"),
        ({"max_difference": float("inf")}, "a logprob differs by inf"),
    ):
        (fault,) = dataclasses.replace(good, **change).faults()
        assert message in fault
