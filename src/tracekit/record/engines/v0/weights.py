"""Hooks of the V0 engine that tell its runner's lineage what happens between steps, and ahead of each.

Sites: LocalOrDistributedWorkerBase._get_driver_input_and_broadcast; collective_rpc of the executors;
ExecutorBase.sleep, wake_up; LLMEngine.reset_prefix_cache.
"""

from __future__ import annotations

import sys
import time
from types import ModuleType
from typing import Any

from tracekit.record.capture import Weights
from tracekit.record.engines.engine_core import CoreNotes, Event
from tracekit.record.engines.hook import Hook, harmless
from tracekit.record.engines.patching import wrap
from tracekit.record.engines.v0.state import EngineState, state_of, why_unrecorded
from tracekit.record.registry import active_config

# Methods of vLLM's own workers that write no weights while requests run, or whose event is told apart.
_OWN = frozenset(
    {
        "init_worker",
        "init_device",
        "load_model",
        "determine_num_available_blocks",
        "initialize_cache",
        "start_worker_execution_loop",
        "execute_model",
        "start_profile",
        "stop_profile",
        "save_sharded_state",
        "add_lora",
        "remove_lora",
        "pin_lora",
        "list_loras",
        "sleep",
        "wake_up",
    }
)


def _patch_worker_base(module: ModuleType) -> None:
    wrap(module.LocalOrDistributedWorkerBase, "_get_driver_input_and_broadcast", _around_driver_input)


def _patch_executor_base(module: ModuleType) -> None:
    wrap(module.DistributedExecutorBase, "collective_rpc", _around_rpc)
    wrap(module.ExecutorBase, "sleep", _around_sleep)
    wrap(module.ExecutorBase, "wake_up", _around_wake_up)


def _patch_uniproc_executor(module: ModuleType) -> None:
    wrap(module.UniProcExecutor, "collective_rpc", _around_rpc)


def _patch_engine(module: ModuleType) -> None:
    if module.LLMEngine.__module__ == module.__name__:  # later generations keep the name for an engine of their own
        wrap(module.LLMEngine, "reset_prefix_cache", _around_reset)


HOOKS = {
    "vllm.worker.worker_base": _patch_worker_base,
    "vllm.executor.executor_base": _patch_executor_base,
    "vllm.executor.uniproc_executor": _patch_uniproc_executor,
    "vllm.engine.llm_engine": _patch_engine,
}


# --- ahead of a forward pass ---


def _around_driver_input(original: Any, worker: Any, execute_model_req: Any, *args: Any, **kwargs: Any) -> Any:
    with harmless("which weights a step runs with"):
        # Workers of speculative decoding have runners of their own around the one that is known.
        if active_config() is not None and why_unrecorded(worker.vllm_config) is None:
            _look_ahead(state_of(worker.model_runner), execute_model_req)
    return original(worker, execute_model_req, *args, **kwargs)


def _look_ahead(state: EngineState | None, message: Any) -> None:
    if state is None or not message.seq_group_metadata_list:
        return
    state.weights, state.kv_version_B = Weights(), None
    if state.lineage is not None:
        with Hook(state.recorder, "Lineage.before_forward"):
            state.weights = state.lineage.before_forward(message)
            state.lineage.tell(state.recorder, state.step_id)
            request_ids = [metadata.request_id for metadata in message.seq_group_metadata_list]
            state.kv_version_B = state.lineage.kv_versions(request_ids)


# --- between forward passes ---


def note(state: EngineState | None, kind: str, request_id: str | None = None, **attributes: Any) -> None:
    """Takes note of an event that comes before the next forward pass."""
    if state is not None and state.lineage is not None:
        with Hook(state.recorder, f"the event '{kind}'"):
            state.lineage.note(CoreNotes(events=(Event(kind, time.time_ns(), request_id, attributes),)))


def _state_behind(executor: Any) -> EngineState | None:
    """Returns the state of the V0 engine whose executor this is; other engines have executors of these classes too."""
    with harmless("what happens between steps"):
        worker = getattr(executor, "driver_worker", None)
        runner = getattr(getattr(worker, "worker", worker), "model_runner", None)
        base = sys.modules.get("vllm.worker.model_runner_base")
        if base is not None and isinstance(runner, base.ModelRunnerBase):
            return state_of(runner, "all")
    return None


def _around_rpc(original: Any, executor: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
    name = method if isinstance(method, str) else getattr(method, "__qualname__", type(method).__name__)
    if name in _OWN or name.startswith("tracekit_"):
        return original(executor, method, *args, **kwargs)
    # Before: a recording begins with the weights that are there before the call.
    state = _state_behind(executor)
    try:
        return original(executor, method, *args, **kwargs)
    finally:
        if state is not None and state.lineage is not None:
            with Hook(state.recorder, "a call of the workers"):
                state.lineage.note(CoreNotes(calls=(name,)))


def _around_reset(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    done = original(engine, *args, **kwargs)
    note(_state_behind(engine.model_executor), "cache_reset", success=bool(done))
    return done


def _around_sleep(original: Any, executor: Any, level: int = 1, *args: Any, **kwargs: Any) -> Any:
    if not executor.is_sleeping:
        note(_state_behind(executor), "paused", sleep_level=level)
    return original(executor, level, *args, **kwargs)


def _around_wake_up(original: Any, executor: Any, *args: Any, **kwargs: Any) -> Any:
    was_sleeping = executor.is_sleeping
    result = original(executor, *args, **kwargs)
    if was_sleeping and not executor.is_sleeping:
        note(_state_behind(executor), "resumed")
    return result
