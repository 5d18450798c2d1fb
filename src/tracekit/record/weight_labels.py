"""What a trainer or caller says of an engine's weights while they are recorded."""

from __future__ import annotations

import inspect
import logging
from typing import Any

logger = logging.getLogger("tracekit")

_METHOD = "tracekit_set_weight_version"


def set_weight_version(
    label: str | int | None, engine: Any = None, *, changed: bool = False, partial: bool | None = None
) -> Any:
    """Names the weights that an engine has from now on: recorded as `weight_label`, where anything is recorded.

    A label is no change: `weight_version` counts changes of the weights by itself, and the label goes along.

    Args:
        label: what the caller calls these weights: a name, a trainer's step; None for nothing.
        engine: vLLM's LLM, LLMEngine or AsyncLLM. None for the engines whose model lives in this process.
        changed: the weights were written to in a way that the recorder cannot see (docs/weights.md).
        partial: True says that an update of several calls begins: what is sampled from now on has
            `weights_partial`. False says that it is complete.

    Returns:
        How many models were named. For an AsyncLLM, an awaitable of that.
    """
    text = None if label is None else str(label)
    if engine is not None:
        return _through_engine(engine, text, changed, partial)
    from tracekit.record.registry import active_config

    if active_config() is None:
        return 0
    from tracekit.record.engines.weights import trackers

    found = trackers()
    for tracker in found:
        tracker.name(text, changed=changed, partial=partial)
    if not found:
        logger.warning("tracekit: no engine of this process has weights to be named '%s'; give the engine too", text)
    return len(found)


def _through_engine(engine: Any, label: str | None, changed: bool, partial: bool | None) -> Any:
    from tracekit.record.registry import active_config

    is_async = inspect.iscoroutinefunction(engine.collective_rpc)
    if active_config() is None:
        # The engine's workers have no such method then.
        return _nothing() if is_async else 0
    call = engine.collective_rpc(_METHOD, args=(label, changed, partial))
    return _counted(call) if is_async else sum(call)


async def _nothing() -> int:
    return 0


async def _counted(call: Any) -> int:
    return sum(await call)
