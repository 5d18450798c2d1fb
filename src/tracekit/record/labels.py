"""What a caller says of a request: its group, trajectory, turn and tags, and whether and how to record it.

Labels stand in `SamplingParams.extra_args` (over HTTP: `vllm_xargs`), flat or in one object, and in HTTP headers:

    extra_args={"tracekit_group_id": "g1", "tracekit_tags": {"split": "train"}, "tracekit_record": True}
    extra_args={"tracekit": {"group_id": "g1", "turn_index": 2, "hidden": True}}
    X-Tracekit-Group-Id: g1

What is flat is stronger than what is in the object, and both are stronger than headers.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tracekit.errors import nearest

OBJECT = "tracekit"
PREFIX = "tracekit_"
RECORD = f"{PREFIX}record"
# Not labels: see `forced`.
_OTHERS = ("tracekit_forced",)
_HEADER = "x-tracekit-"


class Wishes(NamedTuple):
    """What a request wants of the recorder; None where it leaves that to the settings."""

    record: bool | None = None
    hidden: bool | None = None
    logits: bool | None = None


@dataclass(frozen=True)
class Labels:
    """What was understood of a request's labels.

    Attributes:
        columns: of the table `requests`: group_id, trajectory_id, turn_index, tags, as far as given.
        wishes: what it wants of the recorder.
        refused: what could not be used, as messages.
    """

    columns: Mapping[str, Any] = field(default_factory=dict)
    wishes: Wishes = field(default_factory=Wishes)
    refused: tuple[str, ...] = ()


def labels_of(extra_args: Mapping[str, Any] | None) -> Labels:
    """Reads the labels in a request's `extra_args`; what is wrong with them is told, not raised."""
    if not extra_args:
        return _NONE
    given = {
        name.removeprefix(PREFIX): value
        for name, value in extra_args.items()
        if name.startswith(PREFIX) and name not in _OTHERS
    }
    whole = extra_args.get(OBJECT)
    refused = []
    if isinstance(whole, Mapping):
        given = {**whole, **given}
    elif whole is not None:
        refused.append(f"'{OBJECT}' is {reprlib.repr(whole)}, but an object was expected")
    return _read(given, refused) if given or refused else _NONE


def labels_of_headers(headers: Mapping[str, str]) -> Labels:
    """Reads the labels in HTTP headers, whose names are in lower case."""
    given = {
        name.removeprefix(_HEADER).replace("-", "_"): value
        for name, value in headers.items()
        if name.startswith(_HEADER)
    }
    return _read(given, [], names=_COLUMNS) if given else _NONE


def without_labels(extra_args: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what else stands in a request's `extra_args`."""
    return {name: value for name, value in extra_args.items() if name != OBJECT and not str(name).startswith(PREFIX)}


def _read(given: Mapping[str, Any], refused: list[str], names: Mapping[str, Any] | None = None) -> Labels:
    readers = _READERS if names is None else names
    found = {}
    for name, value in given.items():
        reader = readers.get(name)
        if reader is None:
            refused.append(f"no such label '{name}'{nearest(str(name), readers)}")
        elif value is not None:
            try:
                found[name] = reader(value)
            except ValueError as error:
                refused.append(f"label '{name}' is {reprlib.repr(value)}, but {error} was expected")
    columns = {name: found[name] for name in _COLUMNS if found.get(name) is not None}
    wishes = Wishes(*(found.get(name) for name in Wishes._fields))
    return Labels(columns, wishes, tuple(refused))


def _text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("text")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("Unicode text") from None
    return text or None


def _index(value: Any) -> int:
    try:
        index = int(value) if isinstance(value, str | int) and not isinstance(value, bool) else -1
    except ValueError:
        index = -1
    if not 0 <= index < 2**31:
        raise ValueError("a whole number from 0 on")
    return index


def _tags(value: Any) -> str:
    try:
        tags = json.loads(value) if isinstance(value, str) else value
        if isinstance(tags, Mapping):
            return json.dumps(tags, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        pass
    raise ValueError("a JSON object")


# vLLM's server turns the booleans of vllm_xargs into numbers or text.
_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def _flag(value: Any) -> bool:
    try:
        return _TRUTH[str(value).lower()]
    except KeyError:
        raise ValueError("true or false") from None


_COLUMNS: Mapping[str, Callable[[Any], Any]] = {
    "group_id": _text,
    "trajectory_id": _text,
    "turn_index": _index,
    "tags": _tags,
}
_READERS: Mapping[str, Callable[[Any], Any]] = {**_COLUMNS, **dict.fromkeys(Wishes._fields, _flag)}
_NONE = Labels()
