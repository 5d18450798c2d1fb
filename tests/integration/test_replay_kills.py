"""The kills of `make soak`, three of them: a replay that is killed and started again ends with the same trace."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tiny_model import VOCAB_SIZE, make_tiny_model
from tracekit.store import TraceWriter

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from kill_replays import Work, differing_tables, kill_series, make_parent


def test_a_replay_killed_at_random_moments_ends_with_the_same_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_tiny_model(tmp_path / "model")
    seed = random.SystemRandom().randrange(1 << 16)
    print(f"seed {seed}")
    parent = make_parent(tmp_path / "parent", 80, VOCAB_SIZE, random.Random(seed))
    # Each batch is kept for good, so that a kill after the first has something to go on with.
    work = Work(parent, {"model": str(model), "hidden": True, "batch_tokens": 128}, save_seconds=0.0)

    series = kill_series(work, tmp_path, 3, random.Random(seed))

    assert series.differing == set()
    assert len(series.kills) == 3
    resumed = [kill.num_resumed or 0 for kill in series.kills]
    assert resumed[0] == 0 < max(resumed) < series.num_tokens
    assert "the trace after 3 kills: equal, row for row" in capsys.readouterr().out


def test_the_comparison_sees_a_row_that_differs(tmp_path: Path) -> None:
    one, two = (make_parent(tmp_path / name, 3, 50, random.Random(1)) for name in ("one", "two"))
    assert differing_tables(one, two) == set()
    with TraceWriter(two, run_id="other", writer="late") as writer:
        writer.append("events", {"time_ns": [1], "kind": "paused"})
    assert differing_tables(one, two) == {"events"}
