"""The beginning and the end of a trace: making or continuing it, completing it, and saying why it stayed empty."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracekit.errors import InputError, OutputExistsError, TracekitError
from tracekit.record.config import RecordConfig
from tracekit.record.control import note_loaded, stop_workers, take_loaded
from tracekit.store import Manifest, Trace, create_trace, recover
from tracekit.store.layout import JOURNAL

logger = logging.getLogger("tracekit")


def open_trace(config: RecordConfig) -> None:
    """Makes the trace; with `append`, one that exists already is gone on with, as a further session.

    Raises:
        OutputExistsError: it exists, and the settings do not say `append`.
        NotATraceError, TraceFormatError: there is something to append to that is no trace, or one of another version.
        InputError: it is no recording, or cannot be written to.
    """
    root = Path(config.trace)
    try:
        create_trace(root, "record")
        return
    except OutputExistsError as error:
        if not config.append:
            raise OutputExistsError(f"{error}, or append to it (--append, append=True)") from None
    manifest = Manifest.read(root)
    if manifest.role != "record":
        raise InputError(f"{root} is a trace of role '{manifest.role}', but only recordings are appended to")
    try:
        # A trace may have been copied without it.
        (root / JOURNAL).mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{root} cannot be appended to: {error.strerror}; choose another path") from error


def complete(config: RecordConfig) -> None:
    """Ends the session in all processes, and seals what killed ones left; what fails here is told, never raised."""
    root = Path(config.trace)
    try:
        unfinished = stop_workers(root, config.session)
        if unfinished:
            logger.warning("tracekit: %s still write; run `tracekit recover %s` later", ", ".join(unfinished), root)
        recover(root)
        loaded = take_loaded(root, config.session)
        reason = _why_empty(Trace(root), config.session, loaded=loaded)
        disabled = _disabled_here()
        if reason and disabled:
            reason = f"the recorder switched itself off: {disabled}"
        if reason:
            logger.warning("tracekit: no engine step was recorded in %s: %s", root, reason)
    except (TracekitError, OSError) as error:
        logger.error("tracekit: %s could not be completed: %s", root, error)


def _why_empty(trace: Trace, session: str, *, loaded: bool) -> str | None:
    """Returns the likely reason why a session recorded no step, or None where it did."""
    if _num_rows(trace, "steps", session):
        return None
    runs = [row for row in trace.read("runs", _RUN_COLUMNS).to_pylist() if row["run_id"].startswith(session)]
    for row in runs:
        if row["disabled_reason"]:
            return f"the recorder switched itself off in the {row['process']} process: {row['disabled_reason']}"
    if not runs and not loaded:
        return (
            "no process loaded the recorder. Was vLLM started, is tracekit installed in its Python environment, and "
            "does VLLM_PLUGINS, where the command sets it itself, name tracekit?"
        )
    if not runs:
        return "no engine was started, or none of a vLLM version that is known"
    if any(row["process"] in ("worker", "all") for row in runs):
        return "the worker started, but no request reached it"
    if _num_rows(trace, "requests", session):
        return (
            "requests reached the front end, but the processes that sample did not load the recorder; is tracekit "
            "installed, and named by VLLM_PLUGINS where it is set, on all their hosts?"
        )
    return "an engine was started, but no request was sent to it"


def _disabled_here() -> str | None:
    # It needs torch, which the process that only starts a command may not have.
    registry = sys.modules.get("tracekit.record.registry")
    return registry.disabled_reason() if registry is not None else None


_RUN_COLUMNS = ("run_id", "process", "disabled_reason")


def _num_rows(trace: Trace, table: str, session: str) -> int:
    run_ids: list[Any] = trace.read(table, ["run_id"]).column(0).to_pylist()
    return sum(run_id.startswith(session) for run_id in run_ids)


@dataclass
class _Claim:
    config: RecordConfig
    process_id: int
    opened: bool = False


_claims: dict[str, _Claim] = {}


def claim(config: RecordConfig) -> None:
    """Makes this process the one that opens a session's trace when an engine starts, and completes it at its exit."""
    if not _claims:
        atexit.register(_complete_claims)
    _claims[config.session] = _Claim(config, os.getpid())


def open_claimed(session: str) -> None:
    """Opens the trace of a session that this process claimed; does nothing for others, and the second time.

    Raises:
        InputError: see `open_trace`.
    """
    found = _claims.get(session)
    if found is None or found.opened or found.process_id != os.getpid():
        return
    try:
        open_trace(found.config)
    except BaseException:
        del _claims[session]
        raise
    found.opened = True
    note_loaded(Path(found.config.trace), session)


def _complete_claims() -> None:
    from tracekit.record.registry import deactivate

    claims = [found for found in _claims.values() if found.process_id == os.getpid()]
    _claims.clear()
    if claims:
        deactivate()
    for found in claims:
        if found.opened:
            complete(found.config)
        else:
            logger.warning("tracekit: nothing was recorded in %s: no engine was started", found.config.trace)
