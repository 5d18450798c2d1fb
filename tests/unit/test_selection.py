"""Which requests are recorded: the share as the specification defines it, the first N, wishes, and predicates."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from tracekit.record import RecordConfig
from tracekit.record.selection import Choice, Selection, is_in_share


def _selection(**settings: Any) -> Selection:
    return Selection(RecordConfig(trace="t", **settings))


def _point(key: str) -> float:
    """Where a key falls between 0 and 1, from the text of the specification."""
    return int(hashlib.blake2b(key.encode("utf-8"), digest_size=16).hexdigest()[:16], 16) / 2**64


def test_the_example_of_the_specification() -> None:
    readme = (Path(__file__).parents[2] / "schemas" / "README.md").read_text()
    key, point, inside, outside = re.search(
        r"the key `(\S+)` gives\s+d = `(\w+)`, so it is in a share of (\S+) and not in one of ([\d.]+\d)", readme
    ).groups()  # type: ignore[union-attr]
    assert hashlib.blake2b(key.encode(), digest_size=16).hexdigest().startswith(point)
    assert is_in_share({"trajectory_id": key}, float(inside))
    assert not is_in_share({"trajectory_id": key}, float(outside))


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"trajectory_id": "t", "group_id": "g", "prompt_hash": "p"}, "t"),
        ({"trajectory_id": None, "group_id": "g", "prompt_hash": "p"}, "g"),
        ({"trajectory_id": "", "prompt_hash": "p"}, "p"),
        ({"trajectory_id": "é"}, "é"),
    ],
)
def test_the_key_is_the_first_that_is_known(row: dict[str, Any], key: str) -> None:
    point = _point(key)
    assert is_in_share(row, point + 1e-9)
    assert not is_in_share(row, point - 1e-9)


def test_a_request_without_any_key_is_in_every_share() -> None:
    assert is_in_share({"prompt_hash": None}, 1e-9)


def test_shares_are_shares_and_nest() -> None:
    rows = [{"prompt_hash": f"{i:032x}"} for i in range(4000)]
    chosen = {share: {i for i, row in enumerate(rows) if is_in_share(row, share)} for share in (0.0, 0.1, 0.5, 1.0)}
    assert chosen[0.0] == set()
    assert chosen[1.0] == set(range(4000))
    assert chosen[0.1] < chosen[0.5]
    # Five standard deviations of a binomial distribution.
    assert abs(len(chosen[0.1]) - 400) < 5 * (4000 * 0.09) ** 0.5
    assert abs(len(chosen[0.5]) - 2000) < 5 * (4000 * 0.25) ** 0.5


def test_no_conversation_is_torn() -> None:
    selection = _selection(share=0.5)
    for trajectory in range(50):
        rows = [{"trajectory_id": f"t{trajectory}", "prompt_hash": f"{turn}"} for turn in range(6)]
        assert len({selection.wants(row) for row in rows}) == 1


def test_the_first_count_those_that_the_rest_lets_through() -> None:
    selection = _selection(first=2, where="temperature > 0")
    temperatures = [0.0, 1.0, 0.0, 0.7, 0.5, 1.0]
    assert [selection.wants({"temperature": t}) for t in temperatures] == [False, True, False, True, False, False]
    assert not _selection(first=0).wants({})


def test_requests_decide_for_themselves_and_are_not_counted() -> None:
    selection = _selection(first=1, where="temperature > 0")
    never, always = {"tracekit_record": False}, {"tracekit": {"record": True}}
    hot, cold = {"temperature": 1.0}, {"temperature": 0.0}
    asked = [(never, hot), (always, cold), (always, hot), (None, cold), (None, hot), (None, hot), (always, hot)]
    assert [selection.choose(extra_args, lambda row=row: row).record for extra_args, row in asked] == [
        False,
        True,
        True,
        False,
        True,
        False,
        True,
    ]


def test_columns_are_worked_out_only_where_they_matter() -> None:
    def must_not_be_called() -> dict[str, Any]:
        raise AssertionError

    assert _selection().choose({"other": 1}, must_not_be_called) == Choice(record=True, hidden=False, logits=False)
    assert not _selection(share=0.1).choose({"tracekit_record": 0}, must_not_be_called).record
    with pytest.raises(AssertionError):
        _selection(share=0.1).choose(None, must_not_be_called)


@pytest.mark.parametrize(
    ("settings", "extra_args", "expected"),
    [
        ({}, {"tracekit_hidden": True}, Choice(record=True, hidden=True, logits=False)),
        ({"hidden": True, "logits": True}, {"tracekit_logits": 0}, Choice(record=True, hidden=True, logits=False)),
        ({"hidden": True}, {"tracekit_record": False}, Choice(record=False, hidden=False, logits=False)),
        ({}, {"tracekit_record": False, "tracekit_hidden": True}, Choice(record=False, hidden=False, logits=False)),
    ],
)
def test_what_to_keep_of_a_request(settings: dict[str, Any], extra_args: dict[str, Any], expected: Choice) -> None:
    assert _selection(**settings).choose(extra_args, dict) == expected
