"""Every source fills the same configuration, is checked alike, and gives way to the stronger ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tracekit.errors import ConfigError
from tracekit.record import RecordConfig
from tracekit.record.session import child_environment, resolve
from tracekit.record.settings import from_environment, from_file, from_options, to_environment

ALL = {
    "trace": "/somewhere/run.trace",
    "session": "abcd1234",
    "top_k": 0,
    "hidden": True,
    "logits": True,
    "checksums": True,
    "share": 0.25,
    "first": 100,
    "where": "temperature > 0 and 'a' in stop",
    "append": True,
    "strict": True,
    "max_queue_mib": 3,
    "flush_seconds": 0.5,
    "part_mib": 2,
}


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if not isinstance(value, str) else f'"{value}"'


def test_every_source_gives_every_setting(tmp_path: Path) -> None:
    assert ALL.keys() == {field.name for field in dataclasses.fields(RecordConfig)}
    file = tmp_path / "record.toml"
    file.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in ALL.items() if name != "session"))
    assert from_file(file) | {"session": "abcd1234"} == ALL
    assert from_options(ALL, "here") == ALL
    assert from_environment(to_environment(ALL)) == ALL
    assert from_environment({"TRACEKIT_RECORD_CONFIG": str(file)}) | {"session": "abcd1234"} == ALL
    assert dataclasses.asdict(RecordConfig(**ALL)) == ALL


def test_what_was_not_given_stays_open() -> None:
    assert from_environment({"TRACEKIT_RECORD": "t", "OTHER": "x", "TRACEKIT_RECORDER": "x"}) == {"trace": "t"}
    assert from_options({"top_k": None, "share": 1}, "here") == {"share": 1.0}
    assert to_environment({"trace": "t", "first": None}) == {"TRACEKIT_RECORD": "t"}


def test_the_stronger_source_wins(tmp_path: Path) -> None:
    file = tmp_path / "record.toml"
    file.write_text('trace = "file.trace"\ntop_k = 1\nshare = 0.1\nfirst = 1\n')
    other = tmp_path / "other.toml"
    other.write_text("part_mib = 7\nfirst = 9\n")
    environ = {
        "TRACEKIT_RECORD_CONFIG": str(file),
        "TRACEKIT_RECORD_TOP_K": "2",
        "TRACEKIT_RECORD_SHARE": "0.2",
        "TRACEKIT_RECORD_SESSION": "around",
    }
    given = resolve({"top_k": 3, "hidden": None}, environ)
    assert given["session"] != "around", "a recording inside another one is not that one"
    del given["session"]
    assert given == {"trace": str(Path("file.trace").absolute()), "top_k": 3, "share": 0.2, "first": 1}
    # A file that is named outright stands in place of the one in the environment.
    assert resolve({"trace": "t"}, environ, other).items() >= {"part_mib": 7, "first": 9, "top_k": 2}.items()
    with pytest.raises(ConfigError, match="no trace is named"):
        resolve({}, {"TRACEKIT_RECORD_TOP_K": "2"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("topk", 5, r"no such recorder setting 'topk' \(did you mean 'top_k'\?\)"),
        ("top_k", "5", "'top_k' is '5', but a whole number was expected"),
        ("top_k", True, "'top_k' is True, but a whole number was expected"),
        ("top_k", 1.5, "'top_k' is 1.5, but a whole number was expected"),
        ("hidden", 1, "'hidden' is 1, but true or false was expected"),
        ("share", "half", "'share' is 'half', but a number was expected"),
        ("share", 1.5, "'share' is 1.5, but must be between 0 and 1"),
        ("share", float("nan"), "'share' is nan, but must be between 0 and 1"),
        ("flush_seconds", float("nan"), "must be at least 0"),
        ("flush_seconds", float("inf"), "'flush_seconds' is inf, but must be at least 0.*, and finite"),
        ("first", -1, "'first' is -1, but must be at least 0"),
        ("where", "temprature > 0", "did you mean 'temperature'"),
        ("trace", 5, "'trace' is 5, but text was expected"),
    ],
)
def test_what_does_not_fit_is_named_with_its_source(name: str, value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^somewhere: .*{message}"):
        from_options({name: value}, "somewhere")
    if isinstance(value, str) or value == value:
        file = tmp_path / "record.toml"
        file.write_text(f"{name} = {_toml(value)}\n")
        with pytest.raises(ConfigError, match=f"^{file}: .*{message}"):
            from_file(file)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "TRACEKIT_RECORD_TOPK",
            "5",
            r"TRACEKIT_RECORD_TOPK: no such recorder setting \(did you mean 'TRACEKIT_RECORD_TOP_K'",
        ),
        ("TRACEKIT_RECORD_TRACE", "t", "TRACEKIT_RECORD_TRACE: no such recorder setting"),
        ("TRACEKIT_RECORD_SESSION", "../x", r"'session' is '\.\./x', but must be 1 to 64 letters"),
        ("TRACEKIT_RECORD_TOP_K", "many", "TRACEKIT_RECORD_TOP_K: 'top_k' is 'many', but a whole number was expected"),
        ("TRACEKIT_RECORD_TOP_K", "-1", "at least 0"),
        ("TRACEKIT_RECORD_STRICT", "perhaps", "true or false was expected"),
        ("TRACEKIT_RECORD_WHERE", "nothing", "a request has no 'nothing'"),
        ("TRACEKIT_RECORD_CONFIG", "/no/such/file.toml", "^/no/such/file.toml: .* No such file"),
    ],
)
def test_variables_that_do_not_fit(variable: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecordConfig.from_env({"TRACEKIT_RECORD": "/t", variable: value})


@pytest.mark.parametrize(
    ("content", "message"),
    [("top_k = ", "is not TOML"), ('session = "x"', "is no setting for a file"), ("[record]\ntop_k = 1", "'record'")],
)
def test_files_that_do_not_fit(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "record.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message) as failure:
        from_file(file)
    assert str(failure.value).startswith(str(file))


def test_a_configuration_is_checked_however_it_is_made() -> None:
    with pytest.raises(ConfigError, match="'share' is 2"):
        RecordConfig(trace="t", share=2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        RecordConfig(trace="t").top_k = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (None, None),
        ("", "tracekit"),
        ("mine", "mine,tracekit"),
        ("a,tracekit,b", "a,tracekit,b"),
        ("nottracekit", "nottracekit,tracekit"),
    ],
)
def test_vllms_list_of_allowed_plugins_lets_the_recorder_through(allowed: str | None, expected: str | None) -> None:
    environ = {"PATH": "/bin"} | ({} if allowed is None else {"VLLM_PLUGINS": allowed})
    assert child_environment({"trace": "/t"}, environ).get("VLLM_PLUGINS") == expected


def test_children_inherit_nothing_of_another_recording() -> None:
    environ = {"PATH": "/bin", "TRACEKIT_RECORD_CONFIG": "x.toml", "TRACEKIT_RECORD_FIRST": "1", "TRACEKIT_RECORD": "a"}
    assert child_environment({"trace": "/t", "top_k": 3}, environ) == {
        "PATH": "/bin",
        "TRACEKIT_RECORD": "/t",
        "TRACEKIT_RECORD_TOP_K": "3",
    }
