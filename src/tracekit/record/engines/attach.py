"""Hooks the adapters in, and switches the recorder off where a vLLM release lacks what one of them needs."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tracekit.errors import RecorderError
from tracekit.record import registry
from tracekit.record.engines import engine_core, forcing, front_end, http, lineage, v0, v1, v2, weights
from tracekit.record.engines.describe import instance_of, run_columns
from tracekit.record.engines.needs import Fitting
from tracekit.record.engines.patching import when_imported, wrap
from tracekit.record.engines.v0 import weights as v0_weights

logger = logging.getLogger("tracekit")

_FRONT_ENDS = (front_end, http)
_WORKERS = (v1, v2, v0)
# What they lack leaves columns and events out, and is no reason to record nothing.
_BESIDE = (engine_core, weights, lineage, v0_weights)

_fittings: dict[str, Fitting] = {}
# Of the worker that was made last in this process.
_worker_config: Any = None


def attach() -> None:
    """Hooks every adapter to its modules; may be called again."""
    forcing.attach()
    for process, adapters in (("front_end", _FRONT_ENDS), ("worker", _WORKERS)):
        for adapter in adapters:
            if adapter.__name__ not in _fittings:
                _fittings[adapter.__name__] = Fitting(adapter)
                _fit(adapter, _fittings[adapter.__name__], process)
    for adapter in _BESIDE:
        for module, patch in adapter.HOOKS.items():
            when_imported(module, _beside(patch))
    when_imported("vllm.v1.worker.worker_base", _watch_workers)


def _fit(adapter: ModuleType, fitting: Fitting, process: str) -> None:
    for module, patch in adapter.HOOKS.items():
        when_imported(module, fitting.patch_of(patch))
    entries: dict[str, str] = getattr(adapter, "ENTRIES", {})
    for module, name in entries.items():
        when_imported(module, _watch_entry(name, fitting, process))


def _beside(patch: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def patch_or_warn(module: ModuleType) -> None:
        try:
            patch(module)
        except Exception as error:  # noqa: BLE001 - an engine must start whatever we fail to find in it
            logger.warning("tracekit: of %s, not all that should be is recorded: %s", module.__name__, error)

    return patch_or_warn


def _watch_entry(name: str, fitting: Fitting, process: str) -> Callable[[ModuleType], None]:
    def around_init(original: Any, made: Any, *args: Any, **kwargs: Any) -> Any:
        if fitting.missing:
            vllm_config = kwargs.get("vllm_config", args[0] if args else None)
            disable(vllm_config, process, f"has no {', '.join(fitting.missing)}")
        return original(made, *args, **kwargs)

    def patch(module: ModuleType) -> None:
        if hasattr(module, name):
            wrap(getattr(module, name), "__init__", around_init)
        elif _worker_config is not None:
            disable(_worker_config, process, f"has no {module.__name__}.{name}")

    return patch


def _watch_workers(module: ModuleType) -> None:
    wrap(module.WorkerBase, "__init__", _around_worker_init)


def _around_worker_init(original: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    global _worker_config
    _worker_config = kwargs.get("vllm_config", args[0] if args else None)
    known = [module for adapter in _WORKERS for module in getattr(adapter, "ENTRIES", {})]
    if not any(_exists(module) for module in known):
        disable(_worker_config, "worker", f"has no {' and no '.join(known)}")
    return original(worker, *args, **kwargs)


def _exists(module: str) -> bool:
    try:
        return module in sys.modules or importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def disable(vllm_config: Any, process: str, reason: str) -> None:
    """Switches the recorder off in this process, with one message and a row of `runs` that say why.

    Args:
        vllm_config: of the engine that is being made.
        process: 'front_end' or 'worker'.
        reason: goes on from 'vLLM 0.99.0 …'.

    Raises:
        RecorderError: the settings are strict.
    """
    config = registry.active_config()
    if config is None:
        return
    reason = f"vLLM {_version()} {reason}"
    if config.strict:
        raise RecorderError(f"recorder disabled: {reason}")
    if getattr(getattr(vllm_config, "parallel_config", None), "rank", 0) == 0:
        logger.error("tracekit: recorder disabled, the engine goes on: %s", reason)
    try:
        registry.disable(instance_of(vllm_config), process, lambda: _columns(vllm_config), reason)
    except Exception as error:  # noqa: BLE001 - the engine must start
        logger.error("tracekit: the trace does not say that the recorder is disabled: %r", error)


def _columns(vllm_config: Any) -> dict[str, Any]:
    try:
        return run_columns(vllm_config, None)
    except Exception:  # noqa: BLE001 - of a release that we do not know, this much is known
        return {"engine": "vllm", "engine_version": _version()}


def _version() -> str:
    return str(getattr(sys.modules.get("vllm"), "__version__", "of an unknown version"))
