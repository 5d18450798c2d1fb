"""The recorder's settings, from options and from the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tracekit
from tracekit.errors import ConfigError, InputError, NotATraceError, OutputExistsError, TraceFormatError
from tracekit.record import RecordConfig, record_command
from tracekit.record.registry import active_config
from tracekit.store import Manifest, Trace, TraceWriter, create_trace, manifest
from tracekit.store.parts import write_part


def test_a_child_gets_what_the_parent_has() -> None:
    config = RecordConfig(trace="/somewhere/run.trace", top_k=7, strict=True, flush_seconds=0.5)
    assert RecordConfig.from_env(config.to_env()) == config


def test_nothing_is_recorded_unless_asked() -> None:
    assert RecordConfig.from_env({}) is None
    assert RecordConfig.from_env({"TRACEKIT_RECORD": ""}) is None


def test_recording_refuses_unknown_settings_and_taken_places(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'top_k'"), tracekit.recording(tmp_path / "t", topk=3):
        pass
    assert not (tmp_path / "t").exists()
    create_trace(tmp_path / "t", "record")
    with pytest.raises(OutputExistsError, match="exists already"), tracekit.recording(tmp_path / "t"):
        pass


def test_recording_leaves_the_environment_as_it_was(tmp_path: Path) -> None:
    before = dict(os.environ)
    with tracekit.recording(tmp_path / "t", top_k=3):
        assert RecordConfig.from_env(os.environ).top_k == 3  # type: ignore[union-attr]
        with (
            pytest.raises(InputError, match="into another trace already"),
            tracekit.recording(tmp_path / "other"),
        ):
            pass
    assert dict(os.environ) == before
    assert Trace(tmp_path / "t").num_rows("tokens") == 0


def test_appending_goes_on_with_a_recording_and_nothing_else(tmp_path: Path) -> None:
    sessions = []
    for _ in range(2):
        with tracekit.recording(tmp_path / "t", append=True) as config:
            sessions.append(config.session)
            with TraceWriter(tmp_path / "t", run_id=f"{config.session}-i", writer=f"w{len(sessions)}") as writer:
                writer.append("steps", {"step_id": [0, 1]})
    assert sessions[0] != sessions[1]
    run_ids = Trace(tmp_path / "t").read("steps", ["run_id"]).column(0).to_pylist()
    assert sorted(run_ids) == sorted(f"{session}-i" for session in sessions for _ in range(2))

    with pytest.raises(OutputExistsError, match="or append to it"), tracekit.recording(tmp_path / "t"):
        pass
    create_trace(tmp_path / "replayed", "replay")
    (tmp_path / "folder").mkdir()
    newer = create_trace(tmp_path / "newer", "record")
    text = (tmp_path / "newer" / "manifest.json").read_text()
    (tmp_path / "newer" / "manifest.json").write_text(text.replace(newer.format_version, "2.0"))
    for name, error, message in (
        ("replayed", InputError, "role 'replay', but only recordings are appended to"),
        ("folder", NotATraceError, "an empty folder, not a trace"),
        ("newer", TraceFormatError, r"has trace format 2\.0"),
    ):
        with pytest.raises(error, match=message), tracekit.recording(tmp_path / name, append=True):
            pass


def test_two_commands_that_start_at_once_append_to_one_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, others = tmp_path / "t", []

    def write_while_another_makes_it(*args: Any) -> None:
        # Nobody may find half a trace.
        assert trace.exists() == bool(others)
        if not others:
            monkeypatch.undo()
            others.append(create_trace(trace, "record"))
            monkeypatch.setattr(manifest, "write_part", write_while_another_makes_it)
        write_part(*args)

    monkeypatch.setattr(manifest, "write_part", write_while_another_makes_it)
    with tracekit.recording(trace, append=True):
        pass
    assert [Manifest.read(trace)] == others
    assert os.listdir(tmp_path) == ["t"]


def test_a_copy_without_journals_can_be_appended_to(tmp_path: Path) -> None:
    create_trace(tmp_path / "t", "record")
    shutil.rmtree(tmp_path / "t" / "journal")
    with (
        tracekit.recording(tmp_path / "t", append=True) as config,
        TraceWriter(config.trace, run_id=f"{config.session}-i") as writer,
    ):
        writer.append("steps", {"step_id": [0]})
    assert Trace(tmp_path / "t").num_rows("steps") == 1


RUN = {"role": "record", "writer": "w"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "no engine was started"),
        ({"runs": RUN | {"process": "front_end"}}, "an engine was started, but no request was sent to it"),
        (
            {"runs": RUN | {"process": "front_end"}, "requests": {"request_id": "r"}},
            "requests reached the front end, but the processes that sample did not load the recorder",
        ),
        ({"runs": RUN | {"process": "worker"}}, "the worker started, but no request reached it"),
        (
            {"runs": RUN | {"process": "worker", "disabled_reason": "vLLM 9 has no x"}},
            "switched itself off in the worker process: vLLM 9 has no x",
        ),
        ({"steps": {"step_id": 0}}, None),
    ],
)
def test_an_empty_recording_says_why(
    rows: dict[str, Any], message: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A session before it recorded steps: they do not count for this one.
    create_trace(tmp_path / "t", "record")
    with TraceWriter(tmp_path / "t", run_id="earlier-i", writer="earlier") as writer:
        writer.append("steps", {"step_id": [0]})
    with tracekit.recording(tmp_path / "t", append=True) as config:
        if rows:
            with TraceWriter(config.trace, run_id=f"{config.session}-i", writer="w") as writer:
                for table, columns in rows.items():
                    writer.append(table, columns)
    said = [record.getMessage() for record in caplog.records]
    if message is None:
        assert said == []
    else:
        assert len(said) == 1
        assert message in said[0]


def test_a_command_that_never_loads_the_recorder_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tracekit.cli.main", "record", "-o", str(tmp_path / "t"), "--", "true"]
    errors = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "no process loaded the recorder. Was vLLM started, is tracekit installed" in errors


def test_settings_hold_in_a_forked_process(tmp_path: Path) -> None:
    """vLLM may fork its engine, and does not load plugins again in it."""
    with tracekit.recording(tmp_path / "t") as config:
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            inside = active_config()
            os.write(tell, inside.session.encode() if inside else b"nothing")
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(told, 100).decode() == config.session


def test_the_commands_exit_code_is_handed_on(tmp_path: Path) -> None:
    def run(code: str, name: str) -> int:
        return record_command([sys.executable, "-c", code], RecordConfig(trace=str(tmp_path / name)))

    assert run("raise SystemExit(7)", "a") == 7
    assert run("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "b") == 128 + 15
    with pytest.raises(InputError, match="cannot start 'no-such-command'"):
        record_command(["no-such-command"], RecordConfig(trace=str(tmp_path / "c")))


@pytest.mark.parametrize("code", [0, 7])
def test_a_trace_that_breaks_does_not_change_the_exit_code(code: int, tmp_path: Path) -> None:
    trace = tmp_path / "t"
    program = f"import shutil; shutil.rmtree({str(trace)!r}); raise SystemExit({code})"
    command = [
        sys.executable,
        "-m",
        "tracekit.cli.main",
        "record",
        "-o",
        str(trace),
        "--",
        sys.executable,
        "-c",
        program,
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == code
    assert "Traceback" not in result.stderr
    assert "could not be completed" in result.stderr


def _record_and_break(trace: Path, error: Exception | None) -> None:
    with tracekit.recording(trace):
        shutil.rmtree(trace)
        if error is not None:
            raise error


def test_a_trace_that_breaks_does_not_end_the_block(tmp_path: Path) -> None:
    _record_and_break(tmp_path / "t", None)
    with pytest.raises(KeyError, match="the rollout's own"):
        _record_and_break(tmp_path / "u", KeyError("the rollout's own"))


def test_a_plugin_with_broken_settings_lets_the_engine_start() -> None:
    code = "from tracekit.record.plugin import register; register(); print('engine starts')"
    env = dict(os.environ) | {"TRACEKIT_RECORD": "/t", "TRACEKIT_RECORD_TOP_K": "x"}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert result.stdout == "engine starts\n"
    assert result.stderr.count("recorder disabled") == 1


def test_the_plugin_costs_nothing_where_nothing_is_recorded() -> None:
    code = (
        "import sys; from tracekit.record.plugin import register; register(); "
        "print([name for name in ('torch', 'pyarrow', 'duckdb') if name in sys.modules])"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRACEKIT_RECORD")}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr
