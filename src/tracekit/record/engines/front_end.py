"""Hooks of the V1 engine's front-end process: who asked for what, and what the client got.

Sites (vLLM 0.32): the engines' constructors, OutputProcessor.add_request and abort_requests,
RequestState.make_request_output.
"""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

from tracekit.record.capture import RowsOf, known_row
from tracekit.record.engines.describe import instance_of, request_columns, run_columns
from tracekit.record.engines.patching import wrap
from tracekit.record.pipeline import Recorder
from tracekit.record.registry import active_config, recorder_of

_CONFIG = "_tracekit_vllm_config"
_DONE = "_tracekit_done"


def _patch_llm_engine(module: ModuleType) -> None:
    wrap(module.LLMEngine, "__init__", _around_init)


def _patch_async_llm(module: ModuleType) -> None:
    wrap(module.AsyncLLM, "__init__", _around_init)


def _patch_output_processor(module: ModuleType) -> None:
    wrap(module.OutputProcessor, "add_request", _around_add_request)
    wrap(module.OutputProcessor, "abort_requests", _around_abort_requests)
    wrap(module.RequestState, "make_request_output", _around_make_request_output)


HOOKS = {
    "vllm.v1.engine.llm_engine": _patch_llm_engine,
    "vllm.v1.engine.async_llm": _patch_async_llm,
    "vllm.v1.engine.output_processor": _patch_output_processor,
}


def _around_init(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(engine, *args, **kwargs)
    if active_config() is not None:
        # The output processor is where requests pass; it does not know its engine by itself.
        setattr(engine.output_processor, _CONFIG, engine.vllm_config)
        _recorder(engine.output_processor, engine)
    return result


def _recorder(processor: Any, engine: Any = None) -> Recorder | None:
    if active_config() is None:
        return None
    config = getattr(processor, _CONFIG, None)
    if config is None:
        return None
    # An engine in this very process writes through the same recorder.
    in_process = engine is not None and hasattr(engine.engine_core, "engine_core")
    process = "all" if in_process else "front_end"
    return recorder_of(instance_of(config), process, lambda: run_columns(config, "v1"))


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
    result = original(processor, request, prompt, parent_req, request_index, *args, **kwargs)
    recorder = _recorder(processor)
    if recorder is not None:
        try:
            _note_request(recorder, processor, request, prompt, parent_req, request_index)
        except Exception as error:  # noqa: BLE001 - no exception leaves a hook
            recorder.failed("OutputProcessor.add_request", error)
    return result


def _note_request(
    recorder: Recorder, processor: Any, request: Any, prompt: Any, parent_req: Any, request_index: int
) -> None:
    if request.sampling_params is None:
        return
    state = processor.request_states.get(request.request_id)
    if state is not None:
        state._tracekit_recorder = recorder

    def columns() -> dict[str, Any]:
        own = request_columns(
            request.request_id, request.prompt_token_ids, request.sampling_params, request.lora_request
        )
        return own | {
            "external_id": (parent_req or request).external_req_id,
            "parent_request_id": None if parent_req is None else parent_req.request_id,
            "sample_index": None if parent_req is None else request_index,
            "n": 1 if parent_req is None else parent_req.sampling_params.n,
            "arrival_ns": None if request.arrival_time is None else int(request.arrival_time * 1e9),
            "prompt_text": prompt or None,
        }

    recorder.put(RowsOf("requests", columns))


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
    try:
        setattr(state, _DONE, True)
        row = {
            "request_id": state.request_id,
            "finished_ns": time.time_ns(),
            "finish_reason": finish_reason,
            "stop_reason": None if stop_reason is None else str(stop_reason),
            "num_output_tokens": state.detokenizer.num_output_tokens(),
        }
        recorder.put(known_row("outcomes", row))
    except Exception as error:  # noqa: BLE001 - no exception leaves a hook
        recorder.failed("RequestState.make_request_output", error)
