"""What the adapter remembers of one V0 engine over one recording, and where it finds it again."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from tracekit.record.capture import Ints, Weights
from tracekit.record.config import RecordConfig
from tracekit.record.engines import worker
from tracekit.record.engines.describe import instance_of, run_columns
from tracekit.record.engines.hook import Hook
from tracekit.record.engines.lineage import Lineage, lineage_of
from tracekit.record.engines.v0.kv import cache_of
from tracekit.record.engines.weights import is_hooked
from tracekit.record.pipeline import Recorder
from tracekit.record.registry import active_config, config_of, recorder_of
from tracekit.record.selection import Selection

logger = logging.getLogger("tracekit")

_STATE = "_tracekit"


@dataclass
class EngineState:
    """One engine's requests and steps.

    Attributes:
        selection: which requests are recorded.
        unrecorded: why its tokens are not recorded; None where they are.
        announced: live requests that the front has told of.
        seen: requests that were scheduled at least once.
        preempted: requests that wait to be scheduled again.
        num_resumed: how often each came back.
        step_id: the next forward pass.
        lineage: what is known of its weights and its KV cache.
        weights, kv_version_B: of the forward pass under way, and of each request of its batch.
    """

    session: str
    recorder: Recorder
    selection: Selection
    unrecorded: str | None = None
    announced: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    preempted: set[str] = field(default_factory=set)
    num_resumed: dict[str, int] = field(default_factory=dict)
    step_id: int = 0
    lineage: Lineage | None = None
    weights: Weights = field(default_factory=Weights)
    kv_version_B: Ints | None = None

    def forget(self, request_id: str) -> int:
        """Lets go of a request that ended, and returns how often it was preempted and resumed."""
        self.announced.discard(request_id)
        self.seen.discard(request_id)
        self.preempted.discard(request_id)
        return self.num_resumed.pop(request_id, 0)


def state_of(runner: Any, process: str = "worker") -> EngineState | None:
    """Returns the state of the engine that a model runner belongs to; None while nothing is recorded.

    Args:
        process: for a recorder that is started here; 'all' where the engine itself asks.
    """
    if active_config() is None:
        return None
    config = config_of(instance_of(runner.vllm_config))
    if config is None:
        return None
    state: EngineState | None = getattr(runner, _STATE, None)
    if state is not None and state.session == config.session:
        return state
    state = worker.started(config, lambda: _start(runner, config, process))
    if state is not None and state.unrecorded is not None:
        logger.warning("tracekit: no tokens are recorded: %s", state.unrecorded)
        state.recorder.event("recorder_error", where="V0 model runner", error=state.unrecorded)
    return state


def _start(runner: Any, config: RecordConfig, process: str) -> EngineState | None:
    recorder = recorder_of(instance_of(runner.vllm_config), process, worker.described_later(runner, _describe))
    if recorder is None:
        return None
    state = EngineState(config.session, recorder, Selection(config), why_unrecorded(runner.vllm_config))
    setattr(runner, _STATE, state)
    _trace_weights(runner, state)
    return state


def _trace_weights(runner: Any, state: EngineState) -> None:
    # An engine of several model runners has none of them in this process.
    if state.unrecorded is None and hasattr(runner, "get_model") and is_hooked():
        with Hook(state.recorder, "Lineage"):
            state.lineage = lineage_of(runner, state.recorder.config, cache_of)
            state.lineage.report_to(state.recorder)


def _describe(runner: Any) -> dict[str, Any]:
    """Returns the `runs` columns of the process; what V0 does without saying so is told too."""
    config = runner.vllm_config
    backend = getattr(runner, "attn_backend", None)
    common = worker.describe_runner(runner) if hasattr(runner, "get_model") else run_columns(config, "v0")
    return common | {
        "engine_generation": "v0",
        "logprobs_mode": "processed_logprobs",
        "prefix_caching": bool(config.cache_config.enable_prefix_caching),
        "chunked_prefill": bool(config.scheduler_config.chunked_prefill_enabled),
        "async_scheduling": False,
        "attention_backend": None if backend is None else backend.get_name(),
    }


def why_unrecorded(config: Any) -> str | None:
    """Returns why no tokens of an engine are recorded, given its VllmConfig; None where they are."""
    # Both run the sampler in ways that the hooks would take for ordinary steps.
    if config.speculative_config is not None:
        return "speculative decoding of the V0 engine is not supported"
    if config.scheduler_config.is_multi_step:
        return "multi-step scheduling of the V0 engine is not supported"
    return None
