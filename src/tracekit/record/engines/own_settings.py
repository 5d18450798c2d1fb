"""Finds the settings that an engine brings itself: additional_config={"tracekit": {"trace": "run.trace", ...}}.

vLLM hands its configuration to all processes of an engine, so settings in it reach workers that no environment
reaches. Here are only light wrappers of constructors: as long as no engine brings settings, and none is asked for
otherwise, nothing else of the recorder is imported.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from tracekit.record.engines.patching import when_imported, wrap

KEY = "tracekit"
# Imported where recording was asked for by other ways.
_RECORDER = "tracekit.record.registry"

# Where an engine's configuration passes, by module: class, method. What a release does not have is left alone.
_MADE = {"vllm.engine.arg_utils": ("EngineArgs", "create_engine_config")}
_MET = {
    "vllm.v1.engine.llm_engine": ("LLMEngine", "__init__"),
    "vllm.v1.engine.async_llm": ("AsyncLLM", "__init__"),
    "vllm.v1.engine.core": ("EngineCore", "__init__"),
    "vllm.v1.worker.worker_base": ("WorkerBase", "__init__"),
    "vllm.engine.llm_engine": ("LLMEngine", "__init__"),
    "vllm.worker.worker_base": ("WorkerBase", "__init__"),
}
_HASHED = {"vllm.config": ("VllmConfig", "compute_hash"), "vllm.config.vllm": ("VllmConfig", "compute_hash")}


def watch() -> None:
    """Looks at the configuration of every engine that is made or met in this process; may be called again."""
    for sites, around in ((_MADE, _around_made), (_MET, _around_met), (_HASHED, _around_hash)):
        for module, (owner, method) in sites.items():
            when_imported(module, _patch(owner, method, around))


def _patch(owner_name: str, method: str, around: Any) -> Any:
    def patch(module: ModuleType) -> None:
        owner = getattr(module, owner_name, None)
        if hasattr(owner, method):
            wrap(owner, method, around)

    return patch


def settings_of(vllm_config: Any) -> Any:
    """Returns what an engine's configuration says to the recorder, unchecked; None where it says nothing."""
    additional = getattr(vllm_config, "additional_config", None)
    return additional.get(KEY) if isinstance(additional, Mapping) else None


def _around_made(original: Any, *args: Any, **kwargs: Any) -> Any:
    vllm_config = original(*args, **kwargs)
    if settings_of(vllm_config) is not None or _RECORDER in sys.modules:
        from tracekit.record.engines import adoption

        adoption.engine_made(vllm_config)
    return vllm_config


def _around_met(original: Any, owner: Any, *args: Any, **kwargs: Any) -> Any:
    vllm_config = kwargs.get("vllm_config", args[0] if args else None)
    if settings_of(vllm_config) is not None:
        from tracekit.record.engines import adoption

        adoption.engine_met(vllm_config)
    return original(owner, *args, **kwargs)


def _around_hash(original: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
    """Leaves the recorder out of the hash of what is compiled: otherwise each new trace would compile it anew."""
    if settings_of(vllm_config) is not None:
        additional = {name: value for name, value in vllm_config.additional_config.items() if name != KEY}
        vllm_config = copy.copy(vllm_config)
        vllm_config.additional_config = additional
    return original(vllm_config, *args, **kwargs)
