"""Which tokens flip by logits or by random numbers, and which were computed in equal batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factories import make_request, make_trace
from tracekit import connect


def rows(folder: Path, query: str, a: dict[str, Any], b: dict[str, Any]) -> list[tuple[Any, ...]]:
    parent = make_trace(folder / "a", run_id="run a", **a)
    with connect(parent, make_trace(folder / "b", role="replay", parent=parent, **b)) as session:
        return session.sql(query).rows()


def test_flips(tmp_path: Path) -> None:
    a = [make_request(name, token_ids=[1, 2, 3]) for name in ("same", "noise", "logits", "unknown", "forced")]
    b = [
        make_request("same", token_ids=[1, 2, 3], tokens={"coupled_token_id": [1, 2, 3]}),
        make_request("noise", token_ids=[1, 7, 9], tokens={"coupled_token_id": [1, 2, 8]}),
        make_request("logits", token_ids=[1, 2, 7], tokens={"coupled_token_id": [1, 2, 5]}),
        make_request("unknown", token_ids=[4, 2, 7]),
        make_request("forced", token_ids=[1, 2, 3], forced=True, tokens={"coupled_token_id": [1, 6, 6]}),
    ]
    found = rows(tmp_path, "FROM flips ORDER BY request_id", {"requests": a}, {"requests": b})
    assert found == [
        ("forced", 1, 2, 2, 6, "logits"),
        ("logits", 2, 3, 7, 5, "logits"),
        ("noise", 1, 2, 7, 2, "random numbers"),
        ("unknown", 0, 1, 4, None, None),
    ]


def step(ids: list[str], scheduled: list[int], computed: list[int]) -> dict[str, Any]:
    return {
        "request_ids": [ids],
        "scheduled_tokens": [scheduled],
        "computed_tokens": [computed],
        "num_requests": [len(ids)],
    }


def test_batches(tmp_path: Path) -> None:
    requests = [make_request(name, token_ids=[1, 2, 3], tokens={"step_id": [0, 1, 2]}) for name in ("one", "two")]
    a = [
        step(["one", "two"], [3, 3], [0, 0]),
        step(["one", "two"], [1, 1], [3, 3]),
        step(["one", "two"], [1, 1], [4, 4]),
    ]
    b = [step(["one", "two"], [3, 3], [0, 0]), step(["two", "one"], [1, 1], [3, 3]), step(["one"], [1], [4])]
    query = (
        "SELECT request_id, output_index, a_num_requests, b_num_requests, same_batch FROM pair_batches ORDER BY 1, 2"
    )
    found = rows(tmp_path, query, {"requests": requests, "steps": a}, {"requests": requests, "steps": b})
    expected = [(0, 2, 2, True), (1, 2, 2, False), (2, 2, 1, False)]
    assert found == [(name, *row) for name in ("one", "two") for row in expected]


def test_batches_without_steps_are_unknown(tmp_path: Path) -> None:
    requests = [make_request("one", token_ids=[1], tokens={"step_id": [0]})]
    steps = [step(["one"], [3], [0])]
    query = "SELECT a_num_requests, b_num_requests, same_batch FROM pair_batches"
    assert rows(tmp_path, query, {"requests": requests, "steps": steps}, {"requests": requests}) == [(1, None, None)]
