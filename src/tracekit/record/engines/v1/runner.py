"""Hooks of the V1 model runner: from the scheduler's message to sampled tokens."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracekit.record.capture import Ints, LateCapture, LostTokens, RowsOf, Weights
from tracekit.record.device import mark
from tracekit.record.engines.describe import dp_rank_of
from tracekit.record.engines.hook import Hook
from tracekit.record.engines.lineage import kv_behind, weights_behind
from tracekit.record.engines.patching import wrap
from tracekit.record.engines.schedule import KnownRequest, Schedule, sample_rows, step_columns
from tracekit.record.engines.v1 import prompts
from tracekit.record.engines.v1.sampler import Sampling, watch
from tracekit.record.engines.worker import around_shutdown, recorder_of_runner
from tracekit.record.pipeline import Recorder
from tracekit.record.unknown import UNKNOWN

_STATE = "_tracekit"


class _Batch(NamedTuple):
    """The requests of a step, as they stand ahead of its tokens; the recorder's own copies.

    Attributes:
        scheduled: tokens computed for each request.
        computed_B: tokens whose KV existed before.
        num_tokens_B: tokens that are known.
        num_prompt_B: prompt tokens.
    """

    request_ids: list[str]
    scheduled: list[int]
    computed_B: Ints
    num_tokens_B: Ints
    num_prompt_B: Ints


@dataclass
class _Step:
    """What one step shows on its way from the forward pass to the sampled tokens."""

    started_ns: int
    clock_ns: int
    scheduler_output: Any
    weights: Weights = field(default_factory=Weights)
    batch: _Batch | None = None
    raw: Tensor | None = None
    masked: Tensor | None = None
    hidden: Tensor | None = None
    padded: int | None = None
    cudagraph_mode: str | None = None
    kv_version_B: Ints | None = None
    failed: bool = False


@dataclass
class _RunnerState:
    """What the adapter remembers of a runner between the steps of one recording."""

    schedule: Schedule
    step: _Step | None = None
    sampled: _Step | None = None


def _patch_runner(module: ModuleType) -> None:
    runner = module.GPUModelRunner
    for name, around in (
        ("execute_model", _around_execute_model),
        ("sample_tokens", _around_sample_tokens),
        ("_sample", _around_sample),
        ("_get_prompt_logprobs_dict", _around_prompt_logprobs),
        ("_determine_batch_execution_and_padding", _around_padding),
    ):
        wrap(runner, name, around)
    if hasattr(runner, "shutdown"):  # since 0.32; before, the end of the process is the recorder's end
        wrap(runner, "shutdown", around_shutdown)


HOOKS = {"vllm.v1.worker.gpu_model_runner": _patch_runner}


def _state(runner: Any, session: str) -> _RunnerState:
    state: _RunnerState | None = getattr(runner, _STATE, None)
    if state is None or state.schedule.session != session:
        schedule = Schedule(session, dp_rank_of(runner.vllm_config.parallel_config) or 0)
        state = _RunnerState(schedule)
        setattr(runner, _STATE, state)
    return state


def _current_step(runner: Any) -> _Step | None:
    state: _RunnerState | None = getattr(runner, _STATE, None)
    return None if state is None else state.step


# --- 1, 2: the forward pass ---


def _around_execute_model(original: Any, runner: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
    recorder = recorder_of_runner(runner)
    if recorder is None:
        return original(runner, scheduler_output, *args, **kwargs)
    where = "GPUModelRunner.execute_model"
    state = _state(runner, recorder.config.session)
    with Hook(recorder, where):
        state.step = _Step(time.time_ns(), time.perf_counter_ns(), scheduler_output)
        state.step.weights = weights_behind(runner, recorder, scheduler_output)
        recorder.release()
    result = original(runner, scheduler_output, *args, **kwargs)
    with Hook(recorder, where) as hook:
        _after_forward(runner, recorder, state)
    if hook.failed and state.step is not None:
        state.step.failed = True
    return result


def _after_forward(runner: Any, recorder: Recorder, state: _RunnerState) -> None:
    step = state.step
    assert step is not None
    state.schedule.note_departures(recorder, step.scheduler_output)
    execute_state = runner.execute_model_state
    if execute_state is None or execute_state.logits is None:
        # No sampling on this rank, or none in this step.
        state.step = None
        return
    batch = runner.input_batch
    request_ids = list(batch.req_ids)
    num_requests, scheduled = len(request_ids), step.scheduler_output.num_scheduled_tokens
    step.batch = _Batch(
        request_ids,
        [scheduled[request_id] for request_id in request_ids],
        batch.num_computed_tokens_cpu[:num_requests].copy(),
        batch.num_tokens_no_spec[:num_requests].copy(),
        batch.num_prompt_tokens[:num_requests].copy(),
    )
    step.raw = execute_state.logits
    step.kv_version_B = kv_behind(runner, recorder, state.schedule.step_id, request_ids)
    state.schedule.note_arrivals(
        recorder, step.scheduler_output, request_ids, lambda request_id: _known(runner, request_id)
    )
    if recorder.wants_hidden:
        step.hidden = execute_state.sample_hidden_states


def _known(runner: Any, request_id: str) -> KnownRequest:
    request = runner.requests[request_id]
    output = tuple(request.output_token_ids)
    return KnownRequest(request.prompt_token_ids, request.sampling_params, request.lora_request, output)


def _around_padding(original: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(runner, *args, **kwargs)
    step = _current_step(runner)
    if step is not None and isinstance(result, tuple) and len(result) > 1:
        step.cudagraph_mode = getattr(result[0], "name", None)
        step.padded = getattr(result[1], "num_tokens", None)
    return result


# --- 3: the grammar's mask ---


def _around_sample_tokens(original: Any, runner: Any, grammar_output: Any, *args: Any, **kwargs: Any) -> Any:
    step = _current_step(runner)
    recorder = recorder_of_runner(runner) if step is not None else None
    if step is not None and recorder is not None:
        with Hook(recorder, "GPUModelRunner.sample_tokens") as hook:
            _keep_raw(step, masked=grammar_output is not None)
        step.failed |= hook.failed
    return original(runner, grammar_output, *args, **kwargs)


def _keep_raw(step: _Step, *, masked: bool) -> None:
    """Copies the raw logits where the mask, or the sampler on float32 logits, is about to work on them in place."""
    live = step.raw
    if live is not None and (masked or live.dtype == torch.float32):
        step.raw = live.clone()
        step.masked = live if masked else None


# --- 4, 5, 6: the sampled tokens ---


def _around_sample(original: Any, runner: Any, logits: Any, spec_metadata: Any, *args: Any, **kwargs: Any) -> Any:
    step = _current_step(runner)
    recorder = recorder_of_runner(runner) if step is not None else None
    if step is None or recorder is None:
        return original(runner, logits, spec_metadata, *args, **kwargs)
    where = "GPUModelRunner._sample"
    sampling = Sampling()
    with Hook(recorder, where) as hook:
        if step.masked is not None and logits.dtype == torch.float32:
            step.masked = logits.clone()
        if spec_metadata is not None:
            rows = sample_rows(np.asarray(spec_metadata.num_draft_tokens, np.int64))
            is_bonus_L = rows.draft_L == rows.num_drafts_B[rows.batch_row_L]
            sampling.rows, sampling.target_rows = np.flatnonzero(is_bonus_L), np.flatnonzero(~is_bonus_L)
        watch(sampling)
    step.failed |= hook.failed
    try:
        output = original(runner, logits, spec_metadata, *args, **kwargs)
    finally:
        watch(None)
    state = _state(runner, recorder.config.session)
    state.step, state.sampled = None, step
    with Hook(recorder, where) as hook:
        sampling.raise_failure()
        if not step.failed:
            _hand_over(runner, recorder, state, step, sampling, spec_metadata, output)
    if hook.failed or step.failed:
        with Hook(recorder, where):
            recorder.put(_tokens(runner, output))
    recorder.step_ns += time.perf_counter_ns() - step.clock_ns
    recorder.num_steps += 1
    return output


def _hand_over(
    runner: Any,
    recorder: Recorder,
    state: _RunnerState,
    step: _Step,
    sampling: Sampling,
    spec_metadata: Any,
    output: Any,
) -> None:
    assert step.batch is not None
    step_id, tokens = state.schedule.step_id, _tokens(runner, output)
    row = {
        "step_id": step_id,
        "started_ns": step.started_ns,
        "padded_num_tokens": step.padded,
        "cudagraph_mode": step.cudagraph_mode,
        "sampler_backend": sampling.backend,
        "weight_version": step.weights.version,
        "weight_label": step.weights.label,
    }
    drafts = None if spec_metadata is None else list(spec_metadata.num_draft_tokens)
    position_L = _positions(runner, spec_metadata)
    capture = LateCapture(
        tokens=tokens,
        rows=functools.partial(_token_rows, step.batch, tokens, drafts, position_L, step.kv_version_B),
        step_id=step_id,
        raw_LV=step.raw,
        masked_LV=step.masked,
        drawn=tuple(sampling.drawn),
        hidden_LH=step.hidden,
        reported_S=_reported(runner, step, output),
        weights=step.weights,
        ready=mark(tokens.token_ids_BD),
    )
    recorder.put_later(RowsOf("steps", functools.partial(_step_row, step.batch, row)), capture)
    state.schedule.step_counter += 1


def _tokens(runner: Any, output: Any) -> LostTokens:
    # A row in the middle of a chunked prefill, or of a recomputation, is sampled too and thrown away.
    counts_B = ~runner.discard_request_mask.np[: len(output.sampled_token_ids)]
    # The engine goes on to use its own copy of the ids.
    return LostTokens(output.sampled_token_ids.clone(), counts_B)


def _positions(runner: Any, spec_metadata: Any) -> Tensor | None:
    """Returns the position that each logits row predicts, where the device alone knows it.

    Scheduled ahead of time, the host does not know how many drafts were accepted.
    """
    if spec_metadata is None or not getattr(runner, "use_async_scheduling", False):
        return None
    positions = getattr(runner.positions, "gpu", runner.positions)
    following: Tensor = positions[spec_metadata.logits_indices] + 1
    return following


def _reported(runner: Any, step: _Step, output: Any) -> Tensor | None:
    """Returns the logprobs of the sampled tokens as the engine reports them; UNKNOWN for requests that did not ask."""
    tensors = output.logprobs_tensors
    mode = str(runner.vllm_config.model_config.logprobs_mode)
    if tensors is None or not mode.endswith("logprobs"):
        return None
    assert step.batch is not None
    request_ids, num_samples = step.batch.request_ids, output.sampled_token_ids.shape[1]
    if tensors.logprob_token_ids.numel():
        reported: Tensor = tensors.logprobs[:, 0].float().clone()
    else:
        reported = tensors.logprobs.gather(1, output.sampled_token_ids[:, :1].long())[:, 0].float()
    # Some ask for the logprobs of given ids (since 0.32), which those of the sampled ones come with.
    asked = runner.input_batch.num_logprobs.keys() | getattr(runner.input_batch, "logprob_token_ids", {})
    silent = [i for i, request_id in enumerate(request_ids) if request_id not in asked]
    if silent and len(reported) == len(request_ids) * num_samples:
        reported.view(-1, num_samples)[silent] = UNKNOWN
    return reported if len(reported) == output.sampled_token_ids.numel() else None


def _around_prompt_logprobs(
    original: Any, runner: Any, hidden_states: Any, num_scheduled_tokens: Any, *args: Any, **kwargs: Any
) -> Any:
    state: _RunnerState | None = getattr(runner, _STATE, None)
    recorder = recorder_of_runner(runner) if state is not None and state.sampled is not None else None
    if state is None or state.sampled is None or recorder is None or not runner.num_prompt_logprobs:
        return original(runner, hidden_states, num_scheduled_tokens, *args, **kwargs)
    step, where = state.sampled, "GPUModelRunner._get_prompt_logprobs_dict"
    state.sampled = None
    chunks: list[prompts.Chunk] = []
    with Hook(recorder, where):
        chunks = prompts.begin(runner, hidden_states, num_scheduled_tokens, with_hidden=recorder.wants_hidden)
    try:
        result = original(runner, hidden_states, num_scheduled_tokens, *args, **kwargs)
    finally:
        rows = prompts.end()
    with Hook(recorder, where):
        step_id = state.schedule.step_id - 1
        recorder.put_later(*prompts.captures(runner, chunks, rows, result, step_id, step.weights, step.kv_version_B))
    return result


# --- on the recorder's thread ---


def _step_row(batch: _Batch, known: dict[str, Any]) -> dict[str, Any]:
    scheduled_B = np.array(batch.scheduled, np.int64)
    is_decode_B = batch.computed_B >= batch.num_prompt_B
    is_decode_B &= batch.computed_B + scheduled_B >= batch.num_tokens_B
    return step_columns(batch.request_ids, scheduled_B, batch.computed_B, is_decode_B) | known


def _token_rows(
    batch: _Batch,
    tokens: LostTokens,
    drafts: list[int] | None,
    position_L: Tensor | None,
    kv_version_B: Ints | None,
) -> dict[str, Any]:
    """Returns where the tokens of a step belong, as `TokenCapture` is told it."""
    rows = sample_rows(np.array(drafts or [0] * len(batch.request_ids), np.int64))
    kept = np.flatnonzero(tokens.counts_B[rows.batch_row_L])
    batch_row_R, draft_R = rows.batch_row_L[kept], rows.draft_L[kept]
    num_drafts_R = rows.num_drafts_B[batch_row_R]
    end_R = (batch.computed_B + np.array(batch.scheduled, np.int64))[batch_row_R]
    return {
        "request_ids": [batch.request_ids[row] for row in batch_row_R],
        "logits_row_R": kept,
        "sample_R": batch_row_R * tokens.token_ids_BD.shape[1] + draft_R,
        "batch_index_R": batch_row_R,
        "position_R": end_R - num_drafts_R + draft_R if position_L is None else position_L,
        "num_prompt_R": batch.num_prompt_B[batch_row_R],
        "draft_index_R": None if drafts is None else np.where(num_drafts_R > 0, draft_R, -1),
        "kv_version_R": None if kv_version_B is None else kv_version_B[batch_row_R],
    }
