"""The recorder's settings, from options and from the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tracekit
from tracekit.errors import ConfigError, InputError, OutputExistsError
from tracekit.record import RecordConfig, record_command
from tracekit.store import Trace, create_trace


def test_a_child_gets_what_the_parent_has() -> None:
    config = RecordConfig(trace="/somewhere/run.trace", top_k=7, strict=True, flush_seconds=0.5)
    assert RecordConfig.from_env(config.to_env()) == config


def test_nothing_is_recorded_unless_asked() -> None:
    assert RecordConfig.from_env({}) is None
    assert RecordConfig.from_env({"TRACEKIT_RECORD": ""}) is None


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TRACEKIT_RECORD_TOPK", "5", "did you mean 'top_k'"),
        ("TRACEKIT_RECORD_TOP_K", "many", "a int was expected"),
        ("TRACEKIT_RECORD_TOP_K", "-1", "at least 0"),
        ("TRACEKIT_RECORD_STRICT", "perhaps", "a bool was expected"),
    ],
)
def test_settings_that_do_not_fit_are_refused(variable: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecordConfig.from_env({"TRACEKIT_RECORD": "/t", variable: value})


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
