"""Labels: where they are found, which of two wins, and what is refused without harm."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tracekit.record.labels import Wishes, labels_of, labels_of_headers, without_labels


def test_flat_and_nested_labels_say_the_same() -> None:
    said = {"group_id": "g", "trajectory_id": "t", "turn_index": 2, "tags": {"a": [1, None]}, "record": True}
    flat = labels_of({f"tracekit_{name}": value for name, value in said.items()} | {"other": 1})
    nested = labels_of({"tracekit": said, "other": 1})
    assert flat == nested
    assert flat.columns == {"group_id": "g", "trajectory_id": "t", "turn_index": 2, "tags": '{"a": [1, null]}'}
    assert flat.wishes == Wishes(record=True)
    assert flat.refused == ()


def test_flat_ones_are_stronger() -> None:
    labels = labels_of(
        {"tracekit": {"group_id": "weak", "turn_index": 1, "hidden": True}, "tracekit_group_id": "strong"}
    )
    assert labels.columns == {"group_id": "strong", "turn_index": 1}
    assert labels.wishes == Wishes(hidden=True)


@pytest.mark.parametrize("extra_args", [None, {}, {"kv_transfer_params": {"tracekit_group_id": "x"}, "trace": 1}])
def test_most_requests_have_none(extra_args: dict[str, Any] | None) -> None:
    assert labels_of(extra_args) == labels_of(None)
    assert labels_of(None).columns == {}
    assert labels_of(None).wishes == Wishes(None, None, None)


def test_headers() -> None:
    headers = {
        "x-tracekit-group-id": "g",
        "x-tracekit-trajectory-id": "t",
        "x-tracekit-turn-index": "3",
        "x-tracekit-tags": '{"split": "train"}',
        "x-request-id": "r",
        "authorization": "secret",
    }
    labels = labels_of_headers(headers)
    assert labels.columns == {"group_id": "g", "trajectory_id": "t", "turn_index": 3, "tags": '{"split": "train"}'}
    assert labels.refused == ()
    # Switches are no headers: they must reach the worker, and only the parameters of a request do.
    assert "no such label 'record'" in labels_of_headers({"x-tracekit-record": "true"}).refused[0]


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("group_id", 7, "7"),
        ("group_id", "", None),
        ("group_id", None, None),
        ("turn_index", "0", 0),
        ("tags", '{"a": "b"}', '{"a": "b"}'),
        ("tags", {}, "{}"),
    ],
)
def test_values_are_taken_as_far_as_they_can_be(name: str, value: Any, kept: Any) -> None:
    labels = labels_of({f"tracekit_{name}": value})
    assert labels.columns.get(name) == kept
    assert labels.refused == ()


# vllm_xargs turns true into 1, 1.0 or "true", as its declared types allow.
@pytest.mark.parametrize("value", [True, 1, 1.0, "true", "True", "1"])
def test_switches_survive_the_server(value: Any) -> None:
    assert labels_of({"tracekit_record": value, "tracekit_logits": value}).wishes == Wishes(record=True, logits=True)


@pytest.mark.parametrize("value", [False, 0, 0.0, "false", "0"])
def test_switches_that_are_off(value: Any) -> None:
    assert labels_of({"tracekit_record": value}).wishes == Wishes(record=False)


@pytest.mark.parametrize(
    ("extra_args", "message"),
    [
        ({"tracekit_group": "g"}, "no such label 'group' (did you mean 'group_id'?)"),
        ({"tracekit": "g"}, "'tracekit' is 'g', but an object was expected"),
        ({"tracekit": {"turn": 1}}, "no such label 'turn'"),
        ({"tracekit": {5: 1}}, "no such label '5'"),
        ({"tracekit_group_id": ["g"]}, "label 'group_id' is ['g'], but text was expected"),
        ({"tracekit_group_id": True}, "label 'group_id' is True, but text was expected"),
        ({"tracekit_group_id": "\ud800"}, "but Unicode text was expected"),
        ({"tracekit_turn_index": -1}, "label 'turn_index' is -1, but a whole number from 0 on was expected"),
        ({"tracekit_turn_index": 2**31}, "a whole number from 0 on was expected"),
        ({"tracekit_turn_index": "two"}, "a whole number from 0 on was expected"),
        ({"tracekit_turn_index": 1.5}, "a whole number from 0 on was expected"),
        ({"tracekit_tags": "a=b"}, "label 'tags' is 'a=b', but a JSON object was expected"),
        ({"tracekit_tags": "[1]"}, "a JSON object was expected"),
        ({"tracekit_tags": {"a": float("nan")}}, "a JSON object was expected"),
        ({"tracekit_tags": {"a": {1, 2}}}, "a JSON object was expected"),
        ({"tracekit_tags": "[" * 100_000}, "a JSON object was expected"),
        ({"tracekit_record": "perhaps"}, "label 'record' is 'perhaps', but true or false was expected"),
    ],
)
def test_what_is_wrong_is_told_and_the_rest_is_kept(extra_args: dict[str, Any], message: str) -> None:
    labels = labels_of(extra_args | {"tracekit_trajectory_id": "kept"})
    assert labels.columns == {"trajectory_id": "kept"}
    assert len(labels.refused) == 1
    assert message in labels.refused[0]
    assert len(labels.refused[0]) < 200


def test_what_is_no_label_stays() -> None:
    extra_args = {"tracekit_record": 1, "tracekit": {}, "tracekitty": 2, "other": {"tracekit_tags": 3}}
    assert without_labels(extra_args) == {"tracekitty": 2, "other": {"tracekit_tags": 3}}


def test_tags_are_one_json_value() -> None:
    tags = {"é": "\u2028", "n": 1.5, "deep": {"a": [True]}}
    assert json.loads(labels_of({"tracekit_tags": tags}).columns["tags"]) == tags
