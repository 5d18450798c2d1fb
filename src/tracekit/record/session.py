"""Starting and ending a recording: around a block of Python, around a command, or as the environment asks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tracekit.errors import ConfigError, InputError
from tracekit.record.completion import claim, complete, open_trace
from tracekit.record.config import RecordConfig, new_session
from tracekit.record.control import note_loaded
from tracekit.record.settings import (
    FILE_VARIABLE,
    from_environment,
    from_file,
    from_options,
    to_environment,
    without_settings,
)

PLUGIN = "tracekit"
_ALLOW_LIST = "VLLM_PLUGINS"


@contextlib.contextmanager
def recording(path: Path | str, **settings: Any) -> Iterator[RecordConfig]:
    """Records every vLLM engine that is started inside the block, and ends with a complete trace.

        with tracekit.recording("run.trace"):
            llm = LLM("my-model")
            llm.generate(prompts)

    An engine that runs in this very process (VLLM_ENABLE_V1_MULTIPROCESSING=0) may be older than the block.

    Args:
        path: the trace directory to make; with append=True it may exist already.
        **settings: fields of `RecordConfig`, such as top_k=20. What is not given here is taken from the
            environment (TRACEKIT_RECORD_<FIELD>) and the file that TRACEKIT_RECORD_CONFIG names.

    Raises:
        OutputExistsError: `path` exists already, and may not be appended to.
        ConfigError: a setting that does not fit.
    """
    from tracekit.record.engines.attach import attach
    from tracekit.record.registry import activate, active_config, deactivate

    if active_config() is not None:
        raise InputError(f"{path}: this process records into another trace already; end that recording first")
    given = resolve({**settings, "trace": str(path)}, os.environ)
    config = RecordConfig(**given)
    open_trace(config)
    before = dict(os.environ)
    os.environ.update(child_environment(given, before))
    os.environ.pop(FILE_VARIABLE, None)
    activate(config, given)
    attach()
    note_loaded(Path(config.trace), config.session)
    try:
        yield config
    finally:
        _restore(before, [name for name in before.keys() | os.environ.keys() if _is_ours(name)])
        deactivate()
        complete(config)


def record_command(command: Sequence[str], config: RecordConfig, given: Mapping[str, Any] | None = None) -> int:
    """Runs a command that starts vLLM, with the recorder attached to every process of it.

    Args:
        command: the command and its arguments.
        config: what to record.
        given: those settings that somebody gave, see `resolve`; the rest is left to engines that bring
            settings themselves. All by default.

    Returns:
        The command's exit code; 128 + N where signal N ended it.

    Raises:
        OutputExistsError: the trace exists already, and may not be appended to.
        InputError: the command cannot be started.
    """
    open_trace(config)
    environment = child_environment(asdict(config) if given is None else given, os.environ)
    try:
        child = subprocess.Popen(list(command), env=environment)
    except OSError as error:
        raise InputError(f"cannot start '{command[0]}': {error.strerror}; give a command after `--`") from error
    with _forwarded_signals(child):
        code = child.wait()
    complete(config)
    return code if code >= 0 else 128 - code


def resolve(
    options: Mapping[str, Any],
    environ: Mapping[str, str],
    file: Path | str | None = None,
    source: str = "recording()",
) -> dict[str, Any]:
    """Returns the settings that options, environment and file give, as the arguments of a `RecordConfig`.

    Args:
        options: the strongest; those of None count as not given.
        environ: the environment.
        file: a TOML file, instead of the one that the environment names.
        source: what to call the options in messages.

    Raises:
        ConfigError: a setting that does not fit, or no trace is named.
    """
    given = from_options(options, source)
    if file is not None:
        environ = {name: value for name, value in environ.items() if name != FILE_VARIABLE}
    inherited = from_environment(environ)
    # The session of a recording around this process is not ours.
    inherited.pop("session", None)
    settings = (from_file(file) if file is not None else {}) | inherited | given
    if "trace" not in settings:
        raise ConfigError("no trace is named; say where to record with -o PATH, TRACEKIT_RECORD or a settings file")
    return {"session": new_session()} | settings | {"trace": str(Path(settings["trace"]).absolute())}


def child_environment(given: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment in which vLLM's processes load the recorder and find these settings."""
    environment = without_settings(environ) | to_environment(given)
    allowed = environ.get(_ALLOW_LIST)
    if allowed is not None and PLUGIN not in allowed.split(","):
        environment[_ALLOW_LIST] = f"{allowed},{PLUGIN}" if allowed else PLUGIN
    return environment


def attach_as_asked() -> None:
    """Attaches the recorder as the environment asks; the first process of a session takes charge of its trace.

    Raises:
        ConfigError: a setting that does not fit, or no trace is named.
    """
    from tracekit.record.engines.attach import attach
    from tracekit.record.registry import activate, active_config

    if active_config() is not None:
        return
    given = from_environment(os.environ)
    if "session" in given:
        config = RecordConfig(**given)
        note_loaded(Path(config.trace), config.session)
    else:
        # Nobody started this recording for us, so processes that this one starts belong to it.
        given = resolve({}, os.environ)
        config = RecordConfig(**given)
        claim(config)
        os.environ.update(to_environment(given))
        os.environ.pop(FILE_VARIABLE, None)
    activate(config, given)
    attach()


def _is_ours(name: str) -> bool:
    return name == _ALLOW_LIST or not without_settings({name: ""})


def _restore(before: Mapping[str, str], names: Sequence[str]) -> None:
    for name in names:
        if name in before:
            os.environ[name] = before[name]
        else:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _forwarded_signals(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hands SIGTERM on to the command; Ctrl-C reaches it through the terminal, and is not ours to act on."""
    handlers = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number)),
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
