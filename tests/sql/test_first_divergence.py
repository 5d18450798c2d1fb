"""Where requests first diverge: by token, or by first candidate where tokens were forced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from factories import MadeRequest, make_request, make_trace
from tracekit import connect

NOWHERE = (None,) * 8


def first_divergence(folder: Path, a: list[MadeRequest], b: list[MadeRequest]) -> list[tuple[Any, ...]]:
    parent = make_trace(folder / "a", requests=a, run_id="run a")
    with connect(parent, make_trace(folder / "b", requests=b, role="replay", parent=parent)) as session:
        return session.sql("FROM first_divergence").rows()


def test_columns_and_kinds(tmp_path: Path) -> None:
    a = [
        make_request("argmax", token_ids=[1, 2, 3], tokens={"top1_margin": [1.0, 0.5, 0.25]}),
        make_request("none", token_ids=[1, 2]),
        make_request("silent", token_ids=[]),
        make_request("token", token_ids=[1, 2, 3, 4]),
    ]
    b = [
        make_request("argmax", token_ids=[1, 2, 3], forced=True, tokens={"argmax_token_id": [1, 8, 9]}),
        make_request("none", token_ids=[1, 2], forced=True),
        make_request("silent", token_ids=[]),
        make_request("token", token_ids=[1, 2, 7, 4], tokens={"top1_margin": 0.125}),
    ]
    assert first_divergence(tmp_path, a, b) == [
        ("argmax", 1, "argmax", 2, 2, 2, 8, 0.5, 1.0),
        ("none", *NOWHERE),
        ("silent", *NOWHERE),
        ("token", 2, "token", 3, 7, 3, 7, 1.0, 0.125),
    ]


def test_sampled_tokens_diverge_by_token_only(tmp_path: Path) -> None:
    a = make_request(token_ids=[1, 2])
    b = make_request(token_ids=[1, 2], tokens={"argmax_token_id": [1, 5]})
    assert first_divergence(tmp_path, [a], [b]) == [("r0", *NOWHERE)]


def test_the_forced_side_may_be_a(tmp_path: Path) -> None:
    a = make_request(token_ids=[1, 2], forced=True)
    b = make_request(token_ids=[1, 2], tokens={"argmax_token_id": [1, 5]})
    assert first_divergence(tmp_path, [a], [b])[0][:3] == ("r0", 1, "argmax")


def test_the_earlier_one_counts(tmp_path: Path) -> None:
    a = make_request(token_ids=[1, 2, 3])
    b = make_request(token_ids=[1, 2, 9], forced=True, tokens={"argmax_token_id": [7, 2, 9]})
    assert first_divergence(tmp_path, [a], [b])[0][:3] == ("r0", 0, "argmax")


def candidates(ids: list[int], logits: list[float]) -> dict[str, Any]:
    return {
        "argmax_token_id": ids[0],
        "top1_margin": logits[0] - logits[1],
        "top_token_ids": [ids],
        "top_logits": [logits],
    }


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        pytest.param(([3, 5, 8], [2, 2, 1]), ([5, 3, 8], [2, 1.5, 1]), None, id="tie in A, B has the other one"),
        pytest.param(([3, 5, 8], [2, 1.5, 1]), ([5, 3, 8], [2, 2, 1]), None, id="tie in B"),
        pytest.param(([3, 5, 8], [2, 2, 1]), ([8, 3, 5], [2, 1, 1]), "argmax", id="tie in A, B has a third one"),
        pytest.param(([3, 5, 8], [2, 2, 1]), ([9, 3, 5], [2, 1, 1]), "argmax", id="B's first is no candidate of A"),
        pytest.param(([3, 5, 8], [2, 2, 2]), ([9, 3, 5], [2, 1, 1]), None, id="tie reaches past the list's end"),
        pytest.param(([3, 5, 8], [2, 1.5, 1]), ([5, 3, 8], [2, 1.5, 1]), "argmax", id="no tie"),
    ],
)
def test_exact_ties_are_not_counted(
    tmp_path: Path, a: tuple[list[int], list[float]], b: tuple[list[int], list[float]], kind: str | None
) -> None:
    requests = (
        make_request(token_ids=[3], forced=forced, tokens=candidates(*side)) for forced, side in ((False, a), (True, b))
    )
    assert [row[2] for row in first_divergence(tmp_path, *([request] for request in requests))] == [kind]


def test_without_candidate_lists_the_margin_decides(tmp_path: Path) -> None:
    lists = {"top_token_ids": None, "top_logits": None}
    a = make_request(token_ids=[3, 3], tokens={**lists, "argmax_token_id": 3, "top1_margin": [0.0, 0.5]})
    b = make_request(token_ids=[3, 3], forced=True, tokens={**lists, "argmax_token_id": 5, "top1_margin": 1.0})
    assert [row[:3] for row in first_divergence(tmp_path, [a], [b])] == [("r0", 1, "argmax")]
