"""The recorders of this process: one for each engine run, closed when the process ends."""

from __future__ import annotations

import atexit
import multiprocessing.util
import os
import threading
from collections.abc import Callable

from tracekit.record.capture import Columns
from tracekit.record.config import RecordConfig
from tracekit.record.pipeline import Recorder

_lock = threading.Lock()
_recorders: dict[str, Recorder] = {}
_config: RecordConfig | None = None
_suspended = False


def activate(config: RecordConfig) -> None:
    """Makes hooks record with these settings from now on."""
    global _config
    if _config is None:
        atexit.register(deactivate)
        # A forked child of multiprocessing leaves without atexit, but runs its finalizers.
        multiprocessing.util.Finalize(None, deactivate, exitpriority=100)
    _config = config


def deactivate() -> None:
    """Closes every recorder of this process; hooks do nothing from now on."""
    global _config
    with _lock:
        _config = None
        recorders = list(_recorders.values())
        _recorders.clear()
    for recorder in recorders:
        recorder.close()


def active_config() -> RecordConfig | None:
    """Returns the settings in force, or None while nothing is recorded."""
    return None if _suspended else _config


def suspend(suspended: bool = True) -> None:
    """Makes this process's hooks do nothing, or go on: how a benchmark compares both in one engine."""
    global _suspended
    _suspended = suspended


def recorder_of(instance_id: str, process: str, describe: Callable[[], Columns]) -> Recorder | None:
    """Returns this process's recorder of an engine, started at the first call; None while nothing is recorded.

    Args:
        instance_id: the engine's own id, equal in all its processes.
        process: 'front_end', 'worker' or 'all', for a recorder that is started here.
        describe: the engine's columns of the `runs` row.
    """
    config = _config
    if config is None:
        return None
    run_id = f"{config.session}-{instance_id}"
    recorder = _recorders.get(run_id)
    if recorder is None:
        with _lock:
            recorder = _recorders.get(run_id)
            if recorder is None and _config is not None:
                recorder = _recorders[run_id] = Recorder(config, run_id, process, describe)
    return recorder


def _forget() -> None:
    global _config, _lock
    _config = None
    _lock = threading.Lock()
    _recorders.clear()


# A forked child has the parent's recorders without their threads. It records only if it loads the plugin itself.
os.register_at_fork(after_in_child=_forget)
