"""Two compacted traces are compared row by row where their rows are in the same places, else by their keys."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factories import MadeRequest, make_request, make_trace
from tracekit import connect
from tracekit.store import TraceWriter, compact

NUM = 12


def requests(seed: int, *, shorter: int | None = None, forks: int | None = None, **columns: Any) -> list[MadeRequest]:
    """Requests of one to five tokens; one of them may lack its last token, or end in another."""
    chance = np.random.default_rng(seed)
    made = []
    for number in range(NUM):
        num = 1 + (number * 3) % 5 - (number == shorter)
        ids = [100 * number + place for place in range(num)]
        if number == forks:
            ids[-1] = 7
        logprobs = (-chance.exponential(1, num)).tolist()
        made.append(make_request(f"q{number}", prompt=[number // 2], token_ids=ids, logprob=logprobs, **columns))
    return made


def pair(folder: Path, a: Sequence[MadeRequest], b: Sequence[MadeRequest]) -> tuple[Path, Path]:
    """A recording, and a replay of it in another order."""
    one = make_trace(folder / "a", requests=a, run_id="a")
    return one, make_trace(folder / "b", requests=[*b][::-1], role="replay", parent=one, run_id="b")


def is_in_place(folder: Path) -> bool:
    with connect(folder / "a", folder / "b") as session:
        ((text,),) = session.sql("SELECT sql FROM duckdb_views() WHERE view_name = '_joined'").rows()
    return "_in_place" in text


def compared(folder: Path) -> tuple[list[Any], list[Any], list[Any]]:
    columns = "request_id, output_index, position, a_token_id, b_token_id, a_logprob, b_logprob, d, b_run_id, b_step_id"
    with connect(folder / "a", folder / "b") as session:
        return (
            session.sql(f"SELECT {columns} FROM pairs ORDER BY request_id, output_index").rows(),
            session.sql("SELECT basis, name, format('{:.10g}', value), num_tokens FROM metrics ORDER BY ALL").rows(),
            session.sql("FROM first_divergence").rows(),
        )


@pytest.mark.parametrize("num_buckets", [1, 4])
def test_rows_in_the_same_places(tmp_path: Path, num_buckets: int) -> None:
    a, b = requests(1), requests(2, forced=True)
    pair(tmp_path, a, b)
    before = compared(tmp_path)
    assert not is_in_place(tmp_path)
    for side in "ab":
        compact(tmp_path / side, num_buckets=num_buckets)
    assert is_in_place(tmp_path)
    assert compared(tmp_path) == before
    # By hand: what each token's logprobs differ by.
    d = {
        (one.request["request_id"], place): other.tokens["logprob"][place] - one.tokens["logprob"][place]
        for one, other in zip(a, b, strict=True)
        for place in range(len(one.tokens["token_id"]))
    }
    assert {(row[0], row[1]): row[7] for row in before[0]} == pytest.approx(d, abs=1e-6)


def test_a_trace_with_itself(tmp_path: Path) -> None:
    one = make_trace(tmp_path / "a", requests=requests(1))
    compact(one)
    (tmp_path / "b").symlink_to(one)
    assert is_in_place(tmp_path)
    assert all(row[7] == 0 for row in compared(tmp_path)[0])


@pytest.mark.parametrize(
    "other",
    [
        {"shorter": 4, "tokens": {}},
        {"forks": 2},
        {"outcome": {"num_output_tokens": 1}},
    ],
)
def test_rows_in_other_places(tmp_path: Path, other: dict[str, Any]) -> None:
    pair(tmp_path, requests(1), requests(2, **other))
    before = compared(tmp_path)
    for side in "ab":
        compact(tmp_path / side, num_buckets=2)
    assert not is_in_place(tmp_path)
    assert compared(tmp_path) == before


def test_as_many_rows_in_other_places(tmp_path: Path) -> None:
    """What the counts of rows do not show: one request has a row more, another one less."""
    a = [make_request(name, prompt=[1], token_ids=range(num)) for name, num in (("p", 3), ("q", 2), ("r", 2))]
    b = [make_request(name, prompt=[1], token_ids=range(num)) for name, num in (("p", 2), ("q", 3), ("r", 2))]
    pair(tmp_path, a, b)
    before = compared(tmp_path)
    assert [row[:2] for row in before[0]] == [(name, place) for name in "pqr" for place in (0, 1)]
    for side in "ab":
        compact(tmp_path / side)
    assert not is_in_place(tmp_path)
    assert compared(tmp_path) == before


def test_other_buckets_and_parts_that_came_later(tmp_path: Path) -> None:
    pair(tmp_path, requests(1), requests(2, forced=True))
    before = compared(tmp_path)
    compact(tmp_path / "a", num_buckets=2)
    compact(tmp_path / "b", num_buckets=4)
    assert not is_in_place(tmp_path)
    assert compared(tmp_path) == before
    compact(tmp_path / "b", num_buckets=2)
    assert is_in_place(tmp_path)
    later = tmp_path / "later"
    shutil.copytree(tmp_path / "a", later / "a")
    shutil.copytree(tmp_path / "b", later / "b")
    row = {"output_index": [0], "position": [1], "token_id": [5], "forced": False, "is_prompt": False}
    for side in "ab":
        with TraceWriter(later / side, run_id=side, writer="w1") as writer:
            writer.append("requests", {"request_id": ["new"], "prompt_token_ids": [[3]]})
            writer.append("tokens", {"request_id": ["new"], **row, "logprob": [-1.0]})
    assert not is_in_place(later)
    assert len(compared(later)[0]) == len(before[0]) + 1
    # A row in a journal is a row as well.
    writer = TraceWriter(tmp_path / "a", run_id="a", writer="w2")
    writer.append("tokens", {"request_id": ["q0"], **row, "output_index": [1], "position": [2]})
    writer.flush()
    assert not is_in_place(tmp_path)
    writer.close()


def test_the_order_does_not_depend_on_the_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tracekit.store.compaction import bucketing

    many = [make_request(f"q{number}", prompt=[1], token_ids=range(40)) for number in range(60)]
    pair(tmp_path, many, many)
    compact(tmp_path / "a")
    monkeypatch.setattr(bucketing.Budget, "most_bytes_of_partition", 10_000)
    compact(tmp_path / "b")
    assert is_in_place(tmp_path)
