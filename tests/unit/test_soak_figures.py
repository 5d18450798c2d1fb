"""The soak's arithmetic: what it holds against a trace, and which figures it calls missed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from factories import make_request, make_trace

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import soak

GOOD = {
    "failures": [],
    "num_tokens_missing": 0,
    "num_tokens_wrong": 0,
    "num_rows_dropped": 0,
    "events": [],
    "memory_growth_mib": 49.0,
    "seconds": 180.0,
}


def _trace(path: Path, **events: Any) -> Path:
    requests = [
        make_request("r0", external_id="whole", token_ids=[1, 2, 3]),
        make_request("r1", external_id="left", token_ids=[4, 5, 6]),
    ]
    return make_trace(path, requests=requests, **events)


@pytest.mark.parametrize(
    ("whole", "left", "missing", "wrong"),
    [
        ([1, 2, 3], [4, 5], 0, 0),
        ([1, 2, 3], [], 0, 0),
        # The client got more than the trace has, other tokens, or fewer although it stayed.
        ([1, 2, 3, 9], [4, 5, 6, 9, 9], 3, 0),
        ([1, 9, 3], [9, 5], 0, 2),
        ([1], [4], 0, 2),
    ],
)
def test_tokens_are_held_against_the_trace(
    whole: list[int], left: list[int], missing: int, wrong: int, tmp_path: Path
) -> None:
    figures = soak._of_trace(_trace(tmp_path / "t"), soak.Received({"whole": whole}, {"left": left}))
    assert (figures["num_tokens_missing"], figures["num_tokens_wrong"]) == (missing, wrong)
    assert (figures["num_rows_dropped"], figures["events"]) == (0, [])


def test_drops_and_other_events_are_counted(tmp_path: Path) -> None:
    events = [
        {"kind": "writer_closed"},
        {"kind": "rows_dropped", "attributes": '{"num_rows": 5, "table": "tokens"}'},
        {"kind": "rows_dropped", "attributes": '{"num_rows": 2, "table": "tokens"}'},
        {"kind": "recorder_error"},
    ]
    figures = soak._of_trace(_trace(tmp_path / "t", events=events), soak.Received())
    assert (figures["num_rows_dropped"], figures["events"]) == (7, ["recorder_error"])


@pytest.mark.parametrize(
    ("figures", "num_faults"),
    [
        ({}, 0),
        ({"failures": ["a", "b"]}, 2),
        ({"num_tokens_missing": 1}, 1),
        ({"num_tokens_wrong": 1, "num_rows_dropped": 3}, 2),
        ({"events": ["recorder_error"]}, 1),
        ({"memory_growth_mib": 51.0}, 1),
        ({"memory_growth_mib": -51.0}, 1),
        ({"memory_growth_mib": 51.0, "seconds": 20.0}, 0),
    ],
)
def test_missed_goals_are_named(figures: dict[str, Any], num_faults: int) -> None:
    assert len(soak.faults(GOOD | figures)) == num_faults


def test_memory_is_compared_after_the_first_minute() -> None:
    samples = [soak.Sample(float(second), {"a": 1000.0, "b": float(second)}) for second in range(182)]
    figures = soak._of_memory(samples, 180.0)
    # Medians of five samples each: seconds 60 to 64, and 176 to 180.
    assert (figures["memory_early_mib"], figures["memory_late_mib"], figures["memory_growth_mib"]) == (1062, 1178, 116)
    assert figures["memory_growth_by_process"] == {"a": 0, "b": 116}
    assert figures["num_processes"] == 2
