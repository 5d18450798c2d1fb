"""Starting and ending a recording: around a block of Python, or around a command."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tracekit.errors import InputError, TracekitError
from tracekit.record.config import RecordConfig
from tracekit.record.control import stop_workers
from tracekit.store import Trace, create_trace, recover

logger = logging.getLogger("tracekit")


@contextlib.contextmanager
def recording(path: Path | str, **settings: Any) -> Iterator[RecordConfig]:
    """Records every vLLM engine that is started inside the block, and ends with a complete trace.

        with tracekit.recording("run.trace"):
            llm = LLM("my-model")
            llm.generate(prompts)

    An engine that runs in this very process (VLLM_ENABLE_V1_MULTIPROCESSING=0) may be older than the block.

    Args:
        path: the trace directory to make.
        **settings: fields of `RecordConfig`, such as top_k=20.

    Raises:
        OutputExistsError: `path` exists already.
        ConfigError: a setting that does not fit.
    """
    from tracekit.record.engines import attach
    from tracekit.record.registry import activate, active_config, deactivate

    if active_config() is not None:
        raise InputError(f"{path}: this process records into another trace already; end that recording first")
    config = RecordConfig(trace=str(Path(path).absolute()), **_known(settings))
    create_trace(Path(config.trace), "record")
    environment = config.to_env()
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    activate(config)
    attach()
    try:
        yield config
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        deactivate()
        _complete(config)


def record_command(command: Sequence[str], config: RecordConfig) -> int:
    """Runs a command that starts vLLM, with the recorder attached to every process of it.

    Returns:
        The command's exit code; 128 + N where signal N ended it.

    Raises:
        OutputExistsError: the trace exists already.
        InputError: the command cannot be started.
    """
    root = Path(config.trace)
    create_trace(root, "record")
    try:
        child = subprocess.Popen(list(command), env=os.environ | config.to_env())
    except OSError as error:
        raise InputError(f"cannot start '{command[0]}': {error.strerror}; give a command after `--`") from error
    with _forwarded_signals(child):
        code = child.wait()
    _complete(config)
    return code if code >= 0 else 128 - code


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


def _complete(config: RecordConfig) -> None:
    """Ends the session in all processes, and seals what killed ones left; what fails here is told, never raised."""
    root = Path(config.trace)
    try:
        unfinished = stop_workers(root, config.session)
        if unfinished:
            logger.warning("tracekit: %s still write; run `tracekit recover %s` later", ", ".join(unfinished), root)
        recover(root)
        if Trace(root).num_rows("steps") == 0:
            logger.warning(
                "tracekit: %s holds no engine step. Was an engine started while it recorded, is tracekit installed "
                "beside vLLM, and does VLLM_PLUGINS, where it is set, name tracekit?",
                root,
            )
    except (TracekitError, OSError) as error:
        logger.error("tracekit: %s could not be completed: %s", root, error)


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    from tracekit.errors import ConfigError, nearest

    fields = RecordConfig.__dataclass_fields__.keys() - {"trace"}
    for name in settings.keys() - fields:
        raise ConfigError(f"no such recorder setting '{name}'{nearest(name, fields)}")
    return settings
