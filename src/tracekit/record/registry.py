"""The recorders of this process: one for each engine run, closed when the process ends."""

from __future__ import annotations

import atexit
import multiprocessing.util
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from tracekit.record.capture import Columns
from tracekit.record.config import RecordConfig
from tracekit.record.pipeline import Recorder

_lock = threading.Lock()
_recorders: dict[str, Recorder] = {}
# For every engine of this process; and what it gives, as far as somebody gave it.
_config: RecordConfig | None = None
_given: Mapping[str, Any] = {}
# Of engines that brought settings of their own, by instance id.
_own: dict[str, RecordConfig] = {}
# Why nothing can be recorded in this process, where that is so.
_disabled: str | None = None
_registered = False
# Rises whenever another recorder, or none, may be an engine's from then on.
_generation = 0


def generation() -> int:
    """Returns a number that stays as long as what `active_config`, `config_of` and `recorder_of` return stays."""
    return _generation


def _turn() -> None:
    global _generation
    _generation += 1


def activate(config: RecordConfig, given: Mapping[str, Any] | None = None) -> None:
    """Makes hooks record every engine of this process with these settings from now on.

    Args:
        config: the settings.
        given: those of them that somebody gave; the rest an engine's own settings may fill. All by default.
    """
    global _config
    _config = config
    _turn()
    prefer(asdict(config) if given is None else given)


def prefer(given: Mapping[str, Any]) -> None:
    """Makes settings stronger than what engines bring themselves."""
    global _given
    _given = dict(given)


def preferred() -> Mapping[str, Any]:
    """Returns the settings that are stronger than an engine's own."""
    return _given


def adopt(instance_id: str, config: RecordConfig) -> None:
    """Makes hooks record one engine with settings of its own."""
    _own[instance_id] = config
    _turn()


def is_adopted(instance_id: str) -> bool:
    """Tells whether an engine's own settings are in force."""
    return instance_id in _own


def deactivate(timeout: float = 3.0) -> None:
    """Closes every recorder of this process, each within so many seconds; hooks do nothing from now on."""
    global _config, _given
    with _lock:
        _config = None
        _given = {}
        _own.clear()
        recorders = list(_recorders.values())
        _recorders.clear()
        _turn()
    for recorder in recorders:
        recorder.close(timeout)


def active_config() -> RecordConfig | None:
    """Returns the settings in force, or None while no engine of this process is recorded."""
    if _disabled is not None:
        return None
    return _config or next(iter(_own.values()), None)


def config_of(instance_id: str) -> RecordConfig | None:
    """Returns the settings in force for one engine, or None while it is not recorded."""
    return None if _disabled is not None else _own.get(instance_id, _config)


def disable(instance_id: str, process: str, describe: Callable[[], Columns], reason: str) -> None:
    """Switches the recorder off in this process for good, and says why in the trace of the engine's recording.

    Args:
        instance_id, process, describe: see `recorder_of`.
        reason: for `disabled_reason` of the `runs` row.
    """
    global _disabled
    recorder = recorder_of(instance_id, process, lambda: {**describe(), "disabled_reason": reason})
    _disabled = reason
    _turn()
    if recorder is not None:
        recorder.event("recorder_disabled", reason=reason)
        recorder.enabled = False


def disabled_reason() -> str | None:
    """Returns why nothing can be recorded in this process, or None where it can."""
    return _disabled


def recorder_of(instance_id: str, process: str, describe: Callable[[], Columns]) -> Recorder | None:
    """Returns this process's recorder of an engine, started at the first call; None while it is not recorded.

    Args:
        instance_id: the engine's own id, equal in all its processes.
        process: 'front_end', 'worker' or 'all', for a recorder that is started here.
        describe: the engine's columns of the `runs` row.
    """
    config = _own.get(instance_id, _config)
    if config is None:
        return None
    run_id = f"{config.session}-{instance_id}"
    recorder = _recorders.get(run_id)
    if recorder is None:
        with _lock:
            recorder = _recorders.get(run_id)
            if recorder is None and (_config is not None or _own):
                _close_at_exit()
                recorder = _recorders[run_id] = Recorder(config, run_id, process, describe)
    return recorder


def running(instance_id: str) -> Recorder | None:
    """Returns this process's recorder of an engine where one was started and not closed."""
    config = config_of(instance_id)
    return None if config is None else _recorders.get(f"{config.session}-{instance_id}")


def _close_at_exit() -> None:
    """Has recorders closed at the end of this process; a forked child has to say so itself."""
    global _registered
    if not _registered:
        _registered = True
        atexit.register(deactivate)
        # A forked child of multiprocessing leaves without atexit, but runs its finalizers.
        multiprocessing.util.Finalize(None, deactivate, exitpriority=100)


def _forget_recorders() -> None:
    global _lock, _registered
    _registered = False
    _lock = threading.Lock()
    _recorders.clear()
    _turn()


# A forked child has the parent's recorders without their threads; the settings hold there too: vLLM may fork its
# engine and worker processes, and does not load plugins in them again.
os.register_at_fork(after_in_child=_forget_recorders)
