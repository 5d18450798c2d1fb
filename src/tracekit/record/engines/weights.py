"""Hooks of the paths by which the weights of a running engine change, in the process that holds them.

Sites (vLLM 0.18 and 0.32): load_weights of the model's class; Worker.load_model, reload_weights, update_weights,
start_weight_update, finish_weight_update, init_weight_transfer_engine, sleep; reload_weights of the model runners.
V0 has load_weights, and load_model and sleep of its workers. What a user's function writes without them is looked for
before the next forward pass, see `lineage.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from torch import nn

from tracekit.record.engines.describe import instance_of
from tracekit.record.engines.hook import harmless
from tracekit.record.engines.patching import wrap
from tracekit.record.registry import active_config, config_of
from tracekit.record.weights import WeightTracker

# The tracker of each model, and the recording that it counts for.
_trackers: weakref.WeakKeyDictionary[nn.Module, tuple[str, WeightTracker]] = weakref.WeakKeyDictionary()
_is_hooked = False


def tracker_of(model: nn.Module, session: str) -> WeightTracker:
    """Returns what counts the versions of a model's weights in a recording; loads are seen from the first call on."""
    known = _trackers.get(model)
    if known is None or known[0] != session:
        # The weights that the recording begins with are its version 0, and keep what they were called.
        known = session, WeightTracker(None if known is None else known[1].label)
        _trackers[model] = known
        if hasattr(type(model), "load_weights"):
            wrap(type(model), "load_weights", _around_load_weights)
    return known[1]


def trackers() -> list[WeightTracker]:
    """Returns the trackers of the models in this process."""
    return [tracker for _, tracker in _trackers.values()]


def is_hooked() -> bool:
    """Whether the changes of weights can be seen in this process; else nothing is known of their versions."""
    return _is_hooked


def _patch_worker(module: ModuleType) -> None:
    global _is_hooked
    wrap(module.Worker, "load_model", _around_load_model)
    wrap(module.Worker, "reload_weights", _around_reload_weights)
    for name, around in (
        ("init_weight_transfer_engine", _around_init_transfer),
        ("start_weight_update", _around_start_update),
        ("update_weights", _around_update_weights),
        ("finish_weight_update", _around_finish_update),
        ("sleep", _around_sleep),
    ):
        # Older releases have not all of them.
        if hasattr(module.Worker, name):
            wrap(module.Worker, name, around)
    _is_hooked = True


def _patch_v0_worker(module: ModuleType) -> None:
    global _is_hooked
    worker = getattr(module, "CPUWorker", None) or module.Worker
    wrap(worker, "load_model", _around_load_model)
    if hasattr(worker, "sleep"):
        wrap(worker, "sleep", _around_sleep)
    _is_hooked = True


def _patch_runner(module: ModuleType) -> None:
    # Without it, the worker's own is seen all the same.
    runner = getattr(module, "GPUModelRunner", None)
    if hasattr(runner, "reload_weights"):
        wrap(runner, "reload_weights", _around_runner_reload)


def _patch_worker_base(module: ModuleType) -> None:
    # What collective_rpc finds by its name.
    module.WorkerBase.tracekit_set_weight_version = _set_weight_version


HOOKS = {
    "vllm.v1.worker.worker_base": _patch_worker_base,
    "vllm.v1.worker.gpu_worker": _patch_worker,
    "vllm.v1.worker.gpu_model_runner": _patch_runner,
    "vllm.v1.worker.gpu.model_runner": _patch_runner,
    "vllm.worker.worker_base": _patch_worker_base,
    "vllm.worker.worker": _patch_v0_worker,
    "vllm.worker.cpu_worker": _patch_v0_worker,
}


def _tracker(owner: Any) -> WeightTracker | None:
    """Returns the tracker of a worker's or a runner's model; None while nothing is recorded."""
    config = config_of(instance_of(owner.vllm_config))
    if config is None:
        return None
    with harmless("a change of the weights"):
        return tracker_of(getattr(owner, "model_runner", owner).get_model(), config.session)
    return None


def _set_weight_version(worker: Any, label: str | None, changed: bool = False, partial: bool | None = None) -> bool:
    """The method of vLLM's workers behind collective_rpc("tracekit_set_weight_version", args=(label,))."""
    tracker = _tracker(worker)
    if tracker is not None:
        tracker.name(label, changed=changed, partial=partial)
    return tracker is not None


def _around_load_model(original: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(worker, *args, **kwargs)
    # Only from here on: what an engine starts with is version 0.
    _tracker(worker)
    return result


def _around_load_weights(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    # Only models that are known: another engine of this process may be loading its own, of the same class.
    known = _trackers.get(model) if active_config() is not None else None
    if known is None:
        return original(model, *args, **kwargs)
    tracker = known[1]
    with tracker.changing("load_weights"):
        args, kwargs = _with_noted(tracker, "weights", args, kwargs)
        return original(model, *args, **kwargs)


def _with_noted(tracker: WeightTracker, name: str, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the arguments, with the tracker noting the names in the first one, or the one of that name."""
    if args and args[0] is not None:
        return (_noted(tracker, args[0]), *args[1:]), kwargs
    if kwargs.get(name) is not None:
        kwargs = {**kwargs, name: _noted(tracker, kwargs[name])}
    return args, kwargs


def _noted(tracker: WeightTracker, weights: Iterable[Any]) -> Iterable[Any]:
    if isinstance(weights, list | tuple):
        # Stays what it is: it may be gone through twice.
        for item in weights:
            _note(tracker, item)
        return weights
    return _noting(tracker, weights)


def _noting(tracker: WeightTracker, weights: Iterable[Any]) -> Iterator[Any]:
    for item in weights:
        _note(tracker, item)
        yield item


def _note(tracker: WeightTracker, item: Any) -> None:
    if isinstance(item, tuple | list) and item and isinstance(item[0], str):
        tracker.note_name(item[0])


def _around_reload_weights(original: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    tracker = _tracker(worker)
    if tracker is None:
        return original(worker, *args, **kwargs)
    with tracker.changing("reload_weights", certain=True):
        return original(worker, *args, **kwargs)


def _around_runner_reload(original: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    tracker = _tracker(runner)
    if tracker is None:
        return original(runner, *args, **kwargs)
    with tracker.changing("reload_weights", certain=True):
        # In kernel format the engine copies into parameters itself.
        args, kwargs = _with_noted(tracker, "weights_iterator", args, kwargs)
        return original(runner, *args, **kwargs)


def _around_init_transfer(original: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    tracker = _tracker(worker)
    if tracker is None:
        return original(worker, *args, **kwargs)
    # One of the engines rehearses a load here, on tensors without content.
    with tracker.muted():
        return original(worker, *args, **kwargs)


def _is_of_draft(worker: Any) -> bool:
    """Whether an update is of the draft model: that changes what is proposed, not what is sampled from."""
    return bool(getattr(worker, "_weight_update_is_draft", False))


def _around_start_update(original: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(worker, *args, **kwargs)
    tracker = _tracker(worker)
    if tracker is not None:
        tracker.open()
    return result


def _around_update_weights(original: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    tracker = None if _is_of_draft(worker) else _tracker(worker)
    if tracker is None:
        return original(worker, *args, **kwargs)
    try:
        with tracker.changing("update_weights", certain=True):
            return original(worker, *args, **kwargs)
    except BaseException:
        # The engine gives the update up.
        tracker.close("update_weights")
        raise


def _around_finish_update(original: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    tracker = None if _is_of_draft(worker) else _tracker(worker)
    result = original(worker, *args, **kwargs)
    if tracker is not None:
        tracker.close("finish_weight_update")
    return result


def _around_sleep(original: Any, worker: Any, level: int = 1, *args: Any, **kwargs: Any) -> Any:
    result = original(worker, level, *args, **kwargs)
    tracker = _tracker(worker) if level >= 2 else None
    if tracker is not None:
        # Level 2 throws the weights away: what wakes up is nothing, until something is loaded.
        tracker.changed("sleep")
    return result
