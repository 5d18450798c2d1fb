"""Hooks of the V0 engine's front: who asked for what, and what the client got."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tracekit.record.capture import RequestGone, RequestSeen, known_row
from tracekit.record.engines.describe import request_columns
from tracekit.record.engines.hook import Hook
from tracekit.record.engines.patching import wrap
from tracekit.record.engines.v0.state import EngineState, state_of
from tracekit.record.engines.v0.weights import note
from tracekit.record.labels import RECORD, labels_of
from tracekit.record.registry import active_config

_OWNER = "_tracekit_engine"
_PARENT = "_tracekit_parent"
_DONE = "_tracekit_done"
_ADD = "LLMEngine._add_processed_request"


def _patch_engine(module: ModuleType) -> None:
    if module.LLMEngine.__module__ != module.__name__:
        return  # later generations keep the name for an engine of their own
    wrap(module.LLMEngine, "_add_processed_request", _around_add_request)
    wrap(module.RequestOutputFactory, "create", _around_create_output)


def _patch_scheduler(module: ModuleType) -> None:
    wrap(module.Scheduler, "_preempt", _around_preempt)
    wrap(module.Scheduler, "abort_seq_group", _around_abort)


HOOKS = {
    "vllm.engine.llm_engine": _patch_engine,
    "vllm.core.scheduler": _patch_scheduler,
}


def _runner_of(engine: Any) -> Any:
    """Returns the engine's model runner, which this process has; the engine itself where it has several."""
    worker = getattr(engine.model_executor, "driver_worker", None)
    return getattr(getattr(worker, "worker", worker), "model_runner", engine)


# --- requests ---


@dataclass
class _Parent:
    """A request for several samples, each of which the engine adds as a request of its own.

    Attributes:
        wanted: whether it is recorded; None until that was asked.
    """

    request_id: str
    num_samples: int
    wanted: bool | None = None


def _around_add_request(
    original: Any,
    engine: Any,
    request_id: str,
    processed_inputs: Any,
    params: Any,
    arrival_time: float,
    *args: Any,
    **kwargs: Any,
) -> Any:
    state = state_of(_runner_of(engine), "all")
    if state is None or not hasattr(params, "temperature"):
        return original(engine, request_id, processed_inputs, params, arrival_time, *args, **kwargs)
    parent: _Parent | None = getattr(engine, _PARENT, None)
    asked = params
    with Hook(state.recorder, _ADD):
        # The engine turns some parameters into logits processors, and takes them out.
        asked = copy.copy(params)
    if params.n > 1 and parent is None:
        # It calls this method once more for each sample.
        setattr(engine, _PARENT, _Parent(request_id, params.n))
    try:
        group = original(engine, request_id, processed_inputs, params, arrival_time, *args, **kwargs)
    finally:
        if parent is None:
            setattr(engine, _PARENT, None)
    if group is not None:
        with Hook(state.recorder, _ADD):
            setattr(group, _OWNER, state)
            _note_request(state, group, asked, processed_inputs, parent)
    return group


def _note_request(state: EngineState, group: Any, asked: Any, processed_inputs: Any, parent: _Parent | None) -> None:
    inputs = processed_inputs.get("decoder", processed_inputs)
    prompt, text = group.first_seq.prompt_token_ids, inputs.get("prompt")
    stop_token_ids = sorted(group.sampling_params.all_stop_token_ids)
    sample_index = None if parent is None else int(group.request_id.rsplit("_", 1)[1])

    def columns() -> dict[str, Any]:
        own = request_columns(group.request_id, list(prompt), asked, group.lora_request)
        return own | {
            "stop_token_ids": stop_token_ids,
            "external_id": group.request_id if parent is None else parent.request_id,
            "parent_request_id": None if parent is None else parent.request_id,
            "sample_index": sample_index,
            "n": 1 if parent is None else parent.num_samples,
            "arrival_ns": int(group.arrival_time * 1e9),
            "prompt_text": text or None,
        }

    extra_args, labels = asked.extra_args, labels_of(asked.extra_args)
    wanted = labels.wishes.record
    if wanted is None and not state.selection.takes_all:
        # Asked once for all samples of a request.
        wanted = parent.wanted if parent is not None else None
        if wanted is None:
            wanted = state.selection.wants(columns())
        if parent is not None:
            parent.wanted = wanted
        extra_args = {**(extra_args or {}), RECORD: wanted}
    state.recorder.wants_hidden |= bool(labels.wishes.hidden)
    for reason in labels.refused if wanted is not False else ():
        state.recorder.event("label_refused", request_id=group.request_id, reason=reason)
    state.announced.add(group.request_id)
    state.recorder.put(RequestSeen("requests", columns, (), extra_args))


def _around_preempt(original: Any, scheduler: Any, group: Any, *args: Any, **kwargs: Any) -> Any:
    state: EngineState | None = getattr(group, _OWNER, None)
    if state is not None:
        state.preempted.add(group.request_id)
        note(state, "preempted", group.request_id)
    return original(scheduler, group, *args, **kwargs)


# --- outcomes ---


def _around_create_output(original: Any, group: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(group, *args, **kwargs)
    _note_outcome(group)
    return result


def _around_abort(original: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    before = () if active_config() is None else (*scheduler.waiting, *scheduler.running, *scheduler.swapped)
    result = original(scheduler, *args, **kwargs)
    for group in before:
        _note_outcome(group)
    return result


def _note_outcome(group: Any) -> None:
    state: EngineState | None = getattr(group, _OWNER, None)
    if state is None or getattr(group, _DONE, False) or not group.is_finished():
        return
    with Hook(state.recorder, "RequestOutputFactory.create"):
        setattr(group, _DONE, True)
        sequence = group.first_seq
        row = {
            "request_id": group.request_id,
            "finished_ns": time.time_ns(),
            "finish_reason": sequence.status.get_finished_reason(sequence.status),
            "stop_reason": None if sequence.stop_reason is None else str(sequence.stop_reason),
            "num_output_tokens": sequence.get_output_len(),
            "num_preemptions": state.forget(group.request_id),
        }
        # Its last token may still be held back.
        state.recorder.put_later(known_row("outcomes", row), RequestGone(group.request_id))
