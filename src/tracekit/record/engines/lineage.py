"""Which weights, and which KV, are behind the tokens of a step: what the adapters share.

Those of V1 and Model Runner V2 call `weights_behind` ahead of each forward pass, and `kv_behind` after it where rows
of it count. V0's, whose engine is in one process with the runner, tells its `Lineage` at once what happens.
"""

from __future__ import annotations

import functools
import json
import time
import weakref
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from torch import nn

from tracekit.record.capture import Ints, RowsOf, Weights
from tracekit.record.config import RecordConfig
from tracekit.record.engines.checksums import Checksums
from tracekit.record.engines.engine_core import CoreNotes, Event, introduce, notes_of, remaining_events
from tracekit.record.engines.hook import Hook
from tracekit.record.engines.kv import cache_of
from tracekit.record.engines.weights import is_hooked, tracker_of
from tracekit.record.parameters import ParameterWatch
from tracekit.record.pipeline import Recorder
from tracekit.record.weights import WeightsUpdated

_LINEAGE = "_tracekit_lineage"
# Calls that hooks see for themselves.
_HOOKED = frozenset({"reload_weights", "start_weight_update", "update_weights", "finish_weight_update", "sleep"})


def _patch_worker_base(module: ModuleType) -> None:
    # What collective_rpc finds by its name.
    module.WorkerBase.tracekit_note_events = _note_last_events


HOOKS = {"vllm.v1.worker.worker_base": _patch_worker_base}


def _note_last_events(worker: Any, events: list[tuple[Any, ...]]) -> None:
    lineage: Lineage | None = getattr(worker.model_runner, _LINEAGE, None)
    if lineage is not None:
        lineage.tell_late(Event(*event) for event in events)


class Cache(Protocol):
    """A runner's KV cache, followed by what one generation of the engine tells its runner ahead of a forward pass."""

    def follow(self, message: Any, weights: Weights) -> None:
        """Takes note of a message, whose forward pass runs with these weights."""
        ...

    def oldest(self, request_ids: Iterable[str]) -> Ints:
        """Returns the oldest weights behind the KV of each request; negative where that is not known."""
        ...


def lineage_of(runner: Any, config: RecordConfig, cache_of: Callable[[Any], Cache | None] = cache_of) -> Lineage:
    """Returns a runner's lineage in the recording that the configuration is of.

    Args:
        runner: the runner.
        config: the configuration.
        cache_of: makes what follows its KV cache; V1's by default.
    """
    lineage: Lineage | None = getattr(runner, _LINEAGE, None)
    if lineage is None or lineage.session != config.session:
        lineage = Lineage(runner, config, cache_of(runner))
        setattr(runner, _LINEAGE, lineage)
    return lineage


def weights_behind(runner: Any, recorder: Recorder, message: Any) -> Weights:
    """Takes note of a scheduler's message, ahead of the forward pass that it asks for; returns the weights of that."""
    with Hook(recorder, "Lineage.before_forward"):
        # Of a release with other workers than are known, nothing is known.
        if is_hooked():
            lineage = lineage_of(runner, recorder.config)
            lineage.note(notes_of(message))
            return lineage.before_forward(message) if message.total_num_scheduled_tokens else lineage.weights
    return Weights()


def kv_behind(
    runner: Any, recorder: Recorder, step_id: int, request_ids: Iterable[str], *, tells: bool = True
) -> Ints | None:
    """Returns the oldest weights behind the KV of each request of a step, negative where unknown; None where all are.

    Args:
        runner: the runner.
        recorder: its recorder.
        step_id: the step; events since the one before are told as its.
        request_ids: its requests.
        tells: whether events are this rank's to tell.
    """
    with Hook(recorder, "Lineage.tell"):
        if not is_hooked():
            return None
        lineage = lineage_of(runner, recorder.config)
        if tells:
            lineage.tell(recorder, step_id)
        return lineage.kv_versions(request_ids)
    return None


def join(recorder: Recorder, runner: Any, core: Any) -> None:
    """Prepares for a recording of an engine whose core is in the runner's process, and for its end."""
    introduce(core)
    lineage_of(runner, recorder.config)
    scheduler = weakref.ref(core.scheduler)

    def last_rows() -> list[RowsOf]:
        alive = scheduler()
        return [] if alive is None else [_told(event).row(None) for event in remaining_events(alive)]

    recorder.at_end(last_rows)


class _Told(NamedTuple):
    kind: str
    time_ns: int
    request_id: str | None
    attributes: Callable[[], dict[str, Any]]

    def row(self, step_id: int | None) -> RowsOf:
        def columns() -> dict[str, Any]:
            attributes = self.attributes()
            return {
                "kind": self.kind,
                "time_ns": self.time_ns,
                "request_id": self.request_id,
                "step_id": step_id,
                "attributes": json.dumps(attributes) if attributes else None,
            }

        return RowsOf("events", columns)


def _told(event: Event) -> _Told:
    return _Told(event.kind, event.time_ns, event.request_id, functools.partial(dict, event.attributes))


class Lineage:
    """The weights and the KV cache of one runner, over one recording.

    Args:
        runner: the runner, with its model loaded.
        config: of the recording.
        cache: follows its KV cache; None where what is in it cannot be known.
    """

    def __init__(self, runner: Any, config: RecordConfig, cache: Cache | None) -> None:
        self.session = config.session
        self._model = weakref.ref(runner.get_model())
        self._vllm_config = runner.vllm_config
        self._tracker = tracker_of(runner.get_model(), config.session)
        self._watch: ParameterWatch | None = None
        self._cache = cache
        self._checksums = Checksums() if getattr(config, "checksums", False) else None
        # What user code was called since the last forward pass, and what there is to tell.
        self._calls: list[str] = []
        self._to_tell: list[_Told] = []
        self._is_suspect = False
        self._recorder: weakref.ref[Recorder] | None = None
        self._has_run = False

    @property
    def weights(self) -> Weights:
        """What a forward pass has that runs now."""
        return self._tracker.weights

    def note(self, notes: CoreNotes) -> None:
        """Takes note of what happened in the engine since the last forward pass."""
        if self._has_run and self._recorder is None:
            # Another rank tells.
            self._to_tell.clear()
        if notes == CoreNotes():
            return
        if notes.label is not None:
            self._tracker.label = notes.label
        self._calls += (call for call in notes.calls if call not in self._calls)
        self._note_events(notes.events)
        self._is_suspect |= bool(set(notes.calls) - _HOOKED) or any(e.kind != "preempted" for e in notes.events)

    def before_forward(self, message: Any) -> Weights:
        """Takes note of a forward pass, and of what the engine tells its runner ahead of it; returns its weights."""
        # Not earlier: while an engine sleeps, its weights cannot be read.
        if self._is_suspect or self._watch is None or self._watch.stirred():
            self._look()
        update = self._tracker.forward()
        if update is not None:
            self._note_update(update)
        self._calls, self._is_suspect, self._has_run = [], False, True
        weights = self._tracker.weights
        if self._cache is not None:
            try:
                self._cache.follow(message, weights)
            except BaseException:
                # What this step does to the cache is missing: nothing that follows would be right.
                self._cache = None
                raise
        return weights

    def report_to(self, recorder: Recorder) -> None:
        """Names the recorder of this rank's events, and has it told what is left when the recording ends."""
        if self._recorder is None or self._recorder() is not recorder:
            self._recorder = weakref.ref(recorder)
            lineage = weakref.ref(self)
            recorder.at_end(lambda: [] if (last := lineage()) is None else last._last_rows())

    def tell(self, recorder: Recorder, step_id: int | None) -> None:
        """Hands over the events up to this forward pass."""
        self.report_to(recorder)
        for told in self._to_tell:
            recorder.put(told.row(step_id))
        self._to_tell.clear()

    def tell_late(self, events: Iterable[Event]) -> None:
        """Hands over events that no forward pass follows."""
        recorder = None if self._recorder is None else self._recorder()
        if recorder is not None:
            self._note_events(events)
            self.tell(recorder, None)

    def kv_versions(self, request_ids: Iterable[str]) -> Ints | None:
        """Returns the oldest weights behind the KV of each request, negative where unknown; None where all are."""
        return None if self._cache is None else self._cache.oldest(request_ids)

    def _look(self) -> None:
        """Looks for writes that no hook saw."""
        model = self._model()
        if model is None:
            return
        if self._watch is None:
            self._watch = _watch(model, self._vllm_config)
            if self._checksums is not None:
                loaded = {"version": self._tracker.version, "label": self._tracker.label}
                checksums = self._checksums.take(model)
                self._to_tell.append(_Told("weights_loaded", time.time_ns(), None, lambda: loaded | checksums()))
        elif self._tracker.has_changed:
            # There is a new version anyway; which of its tensors came how is not told apart.
            self._watch.look()
        else:
            names = self._watch.changed()
            if names:
                self._tracker.changed("in place", names)

    def _note_events(self, events: Iterable[Event]) -> None:
        self._to_tell += map(_told, events)

    def _note_update(self, update: WeightsUpdated) -> None:
        model = self._model()
        known = update.attributes() | {"calls": self._calls}
        checksums: Callable[[], dict[str, Any]] = dict
        if model is not None and self._checksums is not None:
            checksums = self._checksums.take(model)
        self._to_tell.append(_Told("weights_updated", update.time_ns, None, lambda: known | checksums()))
        if self._watch is not None:
            self._watch.look()

    def _last_rows(self) -> list[RowsOf]:
        """Returns what is left to tell when a recording ends: a change that no forward pass has seen, too."""
        update = self._tracker.forward()
        if update is not None:
            # Without a look at the weights: nobody knows whether they are awake.
            attributes = update.attributes
            self._to_tell.append(_Told("weights_updated", update.time_ns, None, attributes))
        rows = [told.row(None) for told in self._to_tell]
        self._to_tell.clear()
        return rows


def _watch(model: nn.Module, vllm_config: Any) -> ParameterWatch:
    # Load balancing moves experts about, offloading moves parameters: neither changes the weights.
    balances = bool(getattr(vllm_config.parallel_config, "enable_eplb", False))
    offload = getattr(vllm_config, "offload_config", None)
    offloads = bool(
        getattr(vllm_config.cache_config, "cpu_offload_gb", 0)
        or getattr(getattr(offload, "uva", None), "cpu_offload_gb", 0)
        or getattr(getattr(offload, "prefetch", None), "offload_group_size", 0)
    )
    return ParameterWatch(model, _is_no_expert if balances else None, values=not offloads)


def _is_no_expert(name: str) -> bool:
    return ".experts." not in name
