"""Mixture-of-experts routes, which the engine returns with a request's last output where it is made to.

vLLM 0.32 does so with Model Runner V2, and 0.18 on GPUs, under `enable_return_routed_experts`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from tracekit.record.capture import BatchOf
from tracekit.record.engines.hook import Hook
from tracekit.record.engines.patching import wrap
from tracekit.record.pipeline import Recorder

_FIRST = "_tracekit_first_route"


def patch_output_processor(module: ModuleType) -> None:
    """Hooks the place where a request's last output is put together, in releases that have it."""
    if hasattr(module.RequestState, "_new_completion_output"):
        wrap(module.RequestState, "_new_completion_output", _around_completion)


def note_request(state: Any, params: Any, num_prompt_tokens: int) -> None:
    """Takes note of the first position whose routes the caller wants."""
    setattr(state, _FIRST, min(getattr(params, "routed_experts_prompt_start", 0), num_prompt_tokens))


def _around_completion(original: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
    completion = original(state, *args, **kwargs)
    recorder: Recorder | None = getattr(state, "_tracekit_recorder", None)
    routes_PLK = getattr(completion, "routed_experts", None)
    if recorder is not None and routes_PLK is not None:
        with Hook(recorder, "RequestState._new_completion_output"):
            recorder.put(_batch(state.request_id, getattr(state, _FIRST, 0), routes_PLK))
    return completion


def _batch(request_id: str, first: int, routes_PLK: Any) -> BatchOf:
    """Returns the rows of a request: positions from `first`, layers, and the experts of each."""

    def columns() -> dict[str, Any]:
        num_positions = len(routes_PLK)
        return {
            "request_id": [request_id] * num_positions,
            "position": np.arange(first, first + num_positions, dtype=np.int32),
            "experts": np.asarray(routes_PLK).tolist(),
        }

    return BatchOf("routes", columns)
