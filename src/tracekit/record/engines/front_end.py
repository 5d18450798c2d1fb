"""Hooks of the V1 engine's front-end process: who asked for what, and what the client got.

Sites (vLLM 0.32): constructor and add_request of LLMEngine and AsyncLLM, OutputProcessor.add_request and
abort_requests, RequestState.make_request_output and _new_completion_output.
"""

from __future__ import annotations

import copy
import functools
import logging
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tracekit.record.capture import RowsOf, known_row
from tracekit.record.engines import lineage, routes
from tracekit.record.engines.describe import generation_of, instance_of, request_columns, run_columns
from tracekit.record.engines.hook import Hook, harmless
from tracekit.record.engines.http import Caller, current_caller, external_id
from tracekit.record.engines.patching import wrap
from tracekit.record.engines.worker import describe_runner, described_later
from tracekit.record.labels import RECORD, labels_of
from tracekit.record.pipeline import Recorder
from tracekit.record.registry import active_config, config_of, recorder_of
from tracekit.record.selection import Selection

logger = logging.getLogger("tracekit")

_SESSION = "_tracekit_session"
_DONE = "_tracekit_done"
_WANTED = "_tracekit_wanted"


def _patch_llm_engine(module: ModuleType) -> None:
    _patch_engine(module.LLMEngine)


def _patch_async_llm(module: ModuleType) -> None:
    _patch_engine(module.AsyncLLM)


def _patch_engine(engine: type) -> None:
    wrap(engine, "__init__", _around_init)
    wrap(engine, "add_request", _around_engine_add_request)


def _patch_output_processor(module: ModuleType) -> None:
    wrap(module.OutputProcessor, "add_request", _around_add_request)
    wrap(module.OutputProcessor, "abort_requests", _around_abort_requests)
    wrap(module.RequestState, "make_request_output", _around_make_request_output)
    routes.patch_output_processor(module)


HOOKS = {
    "vllm.v1.engine.llm_engine": _patch_llm_engine,
    "vllm.v1.engine.async_llm": _patch_async_llm,
    "vllm.v1.engine.output_processor": _patch_output_processor,
}
ENTRIES = {"vllm.v1.engine.llm_engine": "LLMEngine", "vllm.v1.engine.async_llm": "AsyncLLM"}
NEEDS = {
    "vllm.v1.engine.output_processor": (
        "OutputProcessor.add_request(request, prompt, parent_req, request_index)",
        "OutputProcessor.abort_requests(request_ids, internal)",
        "RequestState.make_request_output(new_token_ids, pooling_output, finish_reason, stop_reason)",
    ),
}


def _around_init(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(engine, *args, **kwargs)
    _introduce(engine)
    return result


def _around_engine_add_request(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    # The recording may be younger than the engine.
    _introduce(engine)
    return original(engine, *args, **kwargs)


def _introduce(engine: Any) -> None:
    """Tells the output processor, where requests pass, whose it is; it does not know its engine by itself."""
    active = active_config()
    if active is None:
        return
    try:
        config = config_of(instance_of(engine.vllm_config))
        processor: Any = engine.output_processor
        if config is not None and getattr(processor, _SESSION, None) != config.session:
            setattr(processor, _SESSION, config.session)
            processor._tracekit_recorder = _recorder_of_engine(engine)
            processor._tracekit_selection = Selection(config)
    except Exception as error:
        if active.strict:
            raise
        logger.error("tracekit: requests are not recorded, the engine goes on: %r", error)


def _recorder_of_engine(engine: Any) -> Recorder | None:
    instance = instance_of(engine.vllm_config)
    runner = _runner_in_this_process(engine)
    if runner is None:
        return recorder_of(
            instance, "front_end", lambda: run_columns(engine.vllm_config, generation_of(engine.vllm_config))
        )
    recorder = recorder_of(instance, "all", described_later(runner, describe_runner))
    core = getattr(engine.engine_core, "engine_core", None)
    if recorder is not None and core is not None:
        with harmless("what the engine core notes"):
            lineage.join(recorder, runner, core)
    return recorder


def _runner_in_this_process(engine: Any) -> Any:
    """Returns the model runner where engine and front end share one process, else None."""
    worker = getattr(getattr(engine, "model_executor", None), "driver_worker", None)
    return getattr(getattr(worker, "worker", worker), "model_runner", None)


def _recorder(processor: Any) -> Recorder | None:
    if active_config() is None:
        return None
    recorder: Recorder | None = getattr(processor, "_tracekit_recorder", None)
    return recorder


def _around_add_request(
    original: Any,
    processor: Any,
    request: Any,
    prompt: Any,
    parent_req: Any = None,
    request_index: int = 0,
    *args: Any,
    **kwargs: Any,
) -> Any:
    recorder = _recorder(processor)
    columns = None
    if recorder is not None:
        with Hook(recorder, "OutputProcessor.add_request"):
            # A request that goes on with more input is known already.
            if request.sampling_params is not None and request.request_id not in processor.request_states:
                columns = _choose(recorder, processor, request, prompt, parent_req, request_index)
    result = original(processor, request, prompt, parent_req, request_index, *args, **kwargs)
    if recorder is not None and columns is not None:
        with Hook(recorder, "OutputProcessor.add_request"):
            state = processor.request_states[request.request_id]
            state._tracekit_recorder = recorder
            routes.note_request(state, request.sampling_params, len(request.prompt_token_ids or ()))
            recorder.put(RowsOf("requests", columns))
    return result


def _choose(
    recorder: Recorder, processor: Any, request: Any, prompt: Any, parent_req: Any, request_index: int
) -> Callable[[], dict[str, Any]] | None:
    """Returns what gives the request's columns, or None where it is not to be recorded; tells the worker so."""
    selection: Selection = processor._tracekit_selection
    labels, caller = labels_of(request.sampling_params.extra_args), current_caller()
    columns = functools.partial(_columns, request, prompt, parent_req, request_index, caller)
    wanted = labels.wishes.record
    if wanted is None:
        wanted = selection.takes_all or _is_wanted(selection, columns, parent_req)
        if not selection.takes_all:
            # The engine's own copy of the parameters, which it may share among the samples of a request.
            params = copy.copy(request.sampling_params)
            params.extra_args = {**(params.extra_args or {}), RECORD: wanted}
            request.sampling_params = params
    if not wanted:
        return None
    for reason in (*labels.refused, *(caller.labels.refused if caller else ())):
        recorder.event("label_refused", request_id=request.request_id, reason=reason)
    return columns


def _is_wanted(selection: Selection, columns: Callable[[], dict[str, Any]], parent_req: Any) -> bool:
    """Asks the selection, once for all samples of a request."""
    wanted: bool | None = getattr(parent_req, _WANTED, None)
    if wanted is None:
        wanted = selection.wants(columns())
        if parent_req is not None:
            setattr(parent_req, _WANTED, wanted)
    return wanted


def _columns(request: Any, prompt: Any, parent_req: Any, request_index: int, caller: Caller | None) -> dict[str, Any]:
    own = request_columns(request.request_id, request.prompt_token_ids, request.sampling_params, request.lora_request)
    labels = {} if caller is None else caller.labels.columns
    return {**labels, **own} | {
        "external_id": external_id((parent_req or request).external_req_id, caller),
        "parent_request_id": None if parent_req is None else parent_req.request_id,
        "sample_index": None if parent_req is None else request_index,
        "n": 1 if parent_req is None else parent_req.sampling_params.n,
        "arrival_ns": None if request.arrival_time is None else int(request.arrival_time * 1e9),
        "prompt_text": prompt or None,
    }


def _around_make_request_output(
    original: Any,
    state: Any,
    new_token_ids: Any,
    pooling_output: Any,
    finish_reason: Any,
    stop_reason: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    result = original(state, new_token_ids, pooling_output, finish_reason, stop_reason, *args, **kwargs)
    if finish_reason is not None:
        _note_outcome(state, str(finish_reason), stop_reason)
    return result


def _around_abort_requests(original: Any, processor: Any, request_ids: Any, internal: bool) -> Any:
    request_ids = list(request_ids)
    before = dict(processor.request_states) if _recorder(processor) is not None else {}
    result = original(processor, request_ids, internal)
    for request_id, state in before.items():
        if request_id not in processor.request_states:
            _note_outcome(state, "abort", None)
    return result


def _note_outcome(state: Any, finish_reason: str, stop_reason: Any) -> None:
    recorder: Recorder | None = getattr(state, "_tracekit_recorder", None)
    if recorder is None or getattr(state, _DONE, False) or state.detokenizer is None:
        return
    with Hook(recorder, "RequestState.make_request_output"):
        setattr(state, _DONE, True)
        row = {
            "request_id": state.request_id,
            "finished_ns": time.time_ns(),
            "finish_reason": finish_reason,
            "stop_reason": None if stop_reason is None else str(stop_reason),
            "num_output_tokens": state.detokenizer.num_output_tokens(),
        }
        recorder.put(known_row("outcomes", row))
