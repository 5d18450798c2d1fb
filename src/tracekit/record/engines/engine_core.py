"""Hooks of the V1 engine's core, which schedules: pauses, cache resets, preemptions, and the engine's weight label.

The core does not know the recorder's steps, and must not wait for the workers. What happens here is noted, and
travels with the scheduler's next message to the process that samples.

Sites (vLLM 0.18 and 0.32): Scheduler.schedule, reset_prefix_cache, _preempt_request; EngineCore.step,
pause_scheduler, resume_scheduler, sleep, collective_rpc, shutdown; EngineCoreProc.pause_scheduler.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

from tracekit.record.config import RecordConfig
from tracekit.record.engines.describe import instance_of
from tracekit.record.engines.hook import harmless
from tracekit.record.engines.patching import wrap
from tracekit.record.registry import config_of

_MESSAGE = "_tracekit_notes"
_NOTES = "_tracekit"
_CORE = "_tracekit_core"
_SHUTDOWN_SECONDS = 2.0


class Event(NamedTuple):
    """Something that happened in the core."""

    kind: str
    time_ns: int
    request_id: str | None
    attributes: dict[str, Any]


class CoreNotes(NamedTuple):
    """What the core tells the process that samples.

    Attributes:
        label: what the engine calls its weights; None where it says nothing new.
        calls: functions that were called in the workers since the last message.
        events: what happened since then.
    """

    label: str | None = None
    calls: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()


_NOTHING = CoreNotes()


@dataclass
class _Noted:
    """Notes of one scheduler that wait for its next message."""

    session: str = ""
    label: str | None = None
    calls: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    # What is going on while the next events are noted.
    context: dict[str, Any] = field(default_factory=dict)


def notes_of(scheduler_output: Any) -> CoreNotes:
    """Returns what a scheduler's message brings along."""
    notes = getattr(scheduler_output, _MESSAGE, None)
    if notes is None:
        return _NOTHING
    label, calls, events = notes
    return CoreNotes(label, tuple(calls), tuple(Event(*event) for event in events))


def introduce(core: Any) -> None:
    """Tells a scheduler whose it is; it does not know its core by itself."""
    setattr(core.scheduler, _CORE, weakref.ref(core))


def remaining_events(scheduler: Any) -> list[Event]:
    """Returns, once, the events that no message of the scheduler has taken along."""
    noted = _noted(scheduler)
    events, noted.events = noted.events, []
    return events


def _patch_scheduler(module: ModuleType) -> None:
    for name, around in (
        ("schedule", _around_schedule),
        ("reset_prefix_cache", _around_reset),
        ("_preempt_request", _around_preempt),
    ):
        wrap(module.Scheduler, name, around)


def _patch_core(module: ModuleType) -> None:
    for name, around in (
        ("step", _around_step),
        ("step_with_batch_queue", _around_step),
        ("pause_scheduler", _around_pause),
        ("resume_scheduler", _around_resume),
        ("sleep", _around_sleep),
        ("collective_rpc", _around_rpc),
        ("shutdown", _around_shutdown),
    ):
        wrap(module.EngineCore, name, around)
    wrap(module.EngineCoreProc, "pause_scheduler", _around_pause)


HOOKS = {"vllm.v1.core.sched.scheduler": _patch_scheduler, "vllm.v1.engine.core": _patch_core}


def _config(scheduler: Any) -> RecordConfig | None:
    return config_of(instance_of(scheduler.vllm_config))


def _noted(scheduler: Any) -> _Noted:
    noted: _Noted | None = getattr(scheduler, _NOTES, None)
    if noted is None:
        noted = _Noted()
        setattr(scheduler, _NOTES, noted)
    return noted


def _note(scheduler: Any, kind: str, request_id: str | None = None, **attributes: Any) -> None:
    if _config(scheduler) is None:
        return
    with harmless(f"the event '{kind}'"):
        noted = _noted(scheduler)
        noted.events.append(Event(kind, time.time_ns(), request_id, noted.context | attributes))


@contextlib.contextmanager
def _during(scheduler: Any, **context: Any) -> Any:
    """Adds to the attributes of all events that are noted meanwhile."""
    noted = _noted(scheduler)
    before, noted.context = noted.context, noted.context | context
    try:
        yield
    finally:
        noted.context = before


# --- the scheduler ---


def _around_schedule(original: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    message = original(scheduler, *args, **kwargs)
    config = _config(scheduler)
    if config is not None:
        with harmless("what the scheduler notes"):
            notes = _take(scheduler, config.session)
            if notes is not None:
                # Plain types alone: a worker without tracekit must be able to read the message.
                setattr(message, _MESSAGE, notes)
    return message


def _take(scheduler: Any, session: str) -> tuple[str | None, list[str], list[tuple[Any, ...]]] | None:
    noted = _noted(scheduler)
    core = getattr(scheduler, _CORE, None)
    label = None if core is None else getattr(core(), "_weight_version", None)
    is_news = label is not None and (session, label) != (noted.session, noted.label)
    if not is_news and not noted.calls and not noted.events:
        return None
    noted.session, noted.label = session, label
    notes = label if is_news else None, noted.calls, [tuple(event) for event in noted.events]
    noted.calls, noted.events = [], []
    return notes


def _around_reset(
    original: Any, scheduler: Any, reset_running_requests: bool = False, *args: Any, **kwargs: Any
) -> Any:
    with _during(scheduler, by="cache_reset"):
        done = original(scheduler, reset_running_requests, *args, **kwargs)
    _note(scheduler, "cache_reset", reset_running_requests=bool(reset_running_requests), success=bool(done))
    return done


def _around_preempt(original: Any, scheduler: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(scheduler, request, *args, **kwargs)
    _note(scheduler, "preempted", str(request.request_id))
    return result


# --- the core ---


def _around_step(original: Any, core: Any, *args: Any, **kwargs: Any) -> Any:
    # Not at its start: the core loads the plugins while it is being made.
    if getattr(core.scheduler, _CORE, None) is None and _config(core.scheduler) is not None:
        with harmless("the engine's weight label"):
            introduce(core)
    return original(core, *args, **kwargs)


def _around_pause(
    original: Any, core: Any, mode: str = "abort", clear_cache: bool = True, *args: Any, **kwargs: Any
) -> Any:
    _note(core.scheduler, "paused", mode=str(mode), clear_cache=bool(clear_cache))
    return original(core, mode, clear_cache, *args, **kwargs)


def _around_resume(original: Any, core: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(core, *args, **kwargs)
    _note(core.scheduler, "resumed")
    return result


def _around_sleep(original: Any, core: Any, level: int = 1, *args: Any, **kwargs: Any) -> Any:
    with _during(core.scheduler, sleep_level=level):
        return original(core, level, *args, **kwargs)


def _around_rpc(original: Any, core: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return original(core, method, *args, **kwargs)
    finally:
        if _config(core.scheduler) is not None:
            with harmless("a call of the workers"):
                _note_call(core.scheduler, method)


def _note_call(scheduler: Any, method: Any) -> None:
    name = method if isinstance(method, str) else getattr(method, "__qualname__", type(method).__name__)
    calls = _noted(scheduler).calls
    if name not in calls and not name.startswith("tracekit_"):
        calls.append(name)


def _around_shutdown(original: Any, core: Any, *args: Any, **kwargs: Any) -> Any:
    if _config(core.scheduler) is not None:
        with harmless("what happened last"):
            events = [tuple(event) for event in remaining_events(core.scheduler)]
            if events:
                core.model_executor.collective_rpc("tracekit_note_events", _SHUTDOWN_SECONDS, (events,))
    return original(core, *args, **kwargs)
