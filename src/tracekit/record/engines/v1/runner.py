"""Hooks of the V1 model runner: from the scheduler's message to sampled tokens."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracekit.record.capture import Ints, LostTokens, TokenCapture, Weights
from tracekit.record.device import device_of, mark
from tracekit.record.engines.describe import dp_rank_of
from tracekit.record.engines.hook import Hook
from tracekit.record.engines.lineage import kv_behind, weights_behind
from tracekit.record.engines.patching import wrap
from tracekit.record.engines.schedule import KnownRequest, SampleRows, Schedule, sample_rows, step_row
from tracekit.record.engines.v1 import prompts
from tracekit.record.engines.v1.sampler import Sampling, watch
from tracekit.record.engines.worker import around_shutdown, recorder_of_runner
from tracekit.record.pipeline import Recorder

_STATE = "_tracekit"
_no_ints = functools.partial(np.empty, 0, np.int32)


@dataclass
class _Step:
    """What one step shows on its way from the forward pass to the sampled tokens."""

    started_ns: int
    clock_ns: int
    scheduler_output: Any
    weights: Weights = field(default_factory=Weights)
    request_ids: list[str] = field(default_factory=list)
    computed: npt.NDArray[np.int32] = field(default_factory=_no_ints)
    scheduled: npt.NDArray[np.int32] = field(default_factory=_no_ints)
    num_tokens: npt.NDArray[np.int32] = field(default_factory=_no_ints)
    num_prompt: npt.NDArray[np.int32] = field(default_factory=_no_ints)
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
    n = batch.num_reqs
    step.request_ids = list(batch.req_ids)
    scheduled = step.scheduler_output.num_scheduled_tokens
    step.scheduled = np.fromiter((scheduled[r] for r in step.request_ids), np.int32, n)
    step.computed = batch.num_computed_tokens_cpu[:n].copy()
    step.num_tokens = batch.num_tokens_no_spec[:n].copy()
    step.num_prompt = batch.num_prompt_tokens[:n].copy()
    step.raw = execute_state.logits
    step.kv_version_B = kv_behind(runner, recorder, state.schedule.step_id, step.request_ids)
    state.schedule.note_arrivals(
        recorder, step.scheduler_output, step.request_ids, lambda request_id: _known(runner, request_id)
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
    rows = None
    with Hook(recorder, where):
        if step.masked is not None and logits.dtype == torch.float32:
            step.masked = logits.clone()
        drafts = [0] * len(step.request_ids) if spec_metadata is None else spec_metadata.num_draft_tokens
        rows = sample_rows(np.asarray(drafts, np.int64))
        if spec_metadata is not None:
            is_bonus_L = rows.draft_L == rows.num_drafts_B[rows.batch_row_L]
            sampling.rows, sampling.target_rows = np.flatnonzero(is_bonus_L), np.flatnonzero(~is_bonus_L)
        watch(sampling)
    try:
        output = original(runner, logits, spec_metadata, *args, **kwargs)
    finally:
        watch(None)
    state = _state(runner, recorder.config.session)
    state.step, state.sampled = None, step
    with Hook(recorder, where) as hook:
        sampling.raise_failure()
        if rows is not None and not step.failed:
            _hand_over(runner, recorder, state, step, sampling, rows, spec_metadata, output)
    if hook.failed or rows is None or step.failed:
        with Hook(recorder, where):
            counts_B = ~runner.discard_request_mask.np[: len(output.sampled_token_ids)]
            recorder.put(LostTokens(output.sampled_token_ids.clone(), counts_B))
    recorder.step_ns += time.perf_counter_ns() - step.clock_ns
    recorder.num_steps += 1
    return output


def _hand_over(
    runner: Any,
    recorder: Recorder,
    state: _RunnerState,
    step: _Step,
    sampling: Sampling,
    rows: SampleRows,
    spec_metadata: Any,
    output: Any,
) -> None:
    end_B = step.computed + step.scheduled
    is_decode_B = (step.computed >= step.num_prompt) & (end_B >= step.num_tokens)
    row = step_row(
        step.request_ids,
        step.scheduled,
        step.computed,
        is_decode_B,
        step_id=state.schedule.step_id,
        started_ns=step.started_ns,
        padded_num_tokens=step.padded,
        cudagraph_mode=step.cudagraph_mode,
        sampler_backend=sampling.backend,
        weight_version=step.weights.version,
        weight_label=step.weights.label,
    )
    # A row in the middle of a chunked prefill, or of a recomputation, is sampled too and thrown away.
    discarded_B = runner.discard_request_mask.np[: len(step.request_ids)]
    kept = np.flatnonzero(~discarded_B[rows.batch_row_L])
    batch_row_R, draft_R = rows.batch_row_L[kept], rows.draft_L[kept]
    num_drafts_R = rows.num_drafts_B[batch_row_R]
    samples_BD = output.sampled_token_ids
    capture = TokenCapture(
        step_id=state.schedule.step_id,
        request_ids=[step.request_ids[i] for i in batch_row_R],
        logits_row_R=kept,
        sample_R=batch_row_R * samples_BD.shape[1] + draft_R,
        batch_index_R=batch_row_R,
        position_R=_positions(runner, spec_metadata, end_B[batch_row_R] - num_drafts_R + draft_R, kept),
        num_prompt_R=step.num_prompt[batch_row_R],
        # The engine goes on to use its own copy of the ids.
        token_ids_S=samples_BD.flatten().clone(),
        raw_LV=step.raw,
        masked_LV=step.masked,
        drawn=tuple(sampling.drawn),
        hidden_LH=step.hidden,
        reported_S=_reported(runner, step, output),
        draft_index_R=None if spec_metadata is None else np.where(num_drafts_R > 0, draft_R, -1),
        kv_version_R=None if step.kv_version_B is None else step.kv_version_B[batch_row_R],
        weights=step.weights,
        ready=mark(samples_BD),
    )
    recorder.put_later(row, *([capture] if len(kept) else []))
    state.schedule.step_counter += 1


def _positions(runner: Any, spec_metadata: Any, position_R: Ints, kept: Ints) -> Ints | Tensor:
    """Returns the positions of the sampled tokens.

    Scheduled ahead of time, the host does not know how many drafts were accepted: the device does.
    """
    if spec_metadata is None or not getattr(runner, "use_async_scheduling", False):
        return position_R
    positions = getattr(runner.positions, "gpu", runner.positions)
    following: Tensor = positions[spec_metadata.logits_indices] + 1
    return following[device_of(following).upload(np.asarray(kept, np.int64))]


def _reported(runner: Any, step: _Step, output: Any) -> Tensor | None:
    """Returns the logprobs of the sampled tokens as the engine reports them; NaN for requests that did not ask."""
    tensors = output.logprobs_tensors
    mode = str(runner.vllm_config.model_config.logprobs_mode)
    if tensors is None or not mode.endswith("logprobs"):
        return None
    num_samples = output.sampled_token_ids.shape[1]
    if tensors.logprob_token_ids.numel():
        reported: Tensor = tensors.logprobs[:, 0].float().clone()
    else:
        reported = tensors.logprobs.gather(1, output.sampled_token_ids[:, :1].long())[:, 0].float()
    # Some ask for the logprobs of given ids (since 0.32), which those of the sampled ones come with.
    asked = runner.input_batch.num_logprobs.keys() | getattr(runner.input_batch, "logprob_token_ids", {})
    silent = [i for i, request_id in enumerate(step.request_ids) if request_id not in asked]
    if silent and len(reported) == len(step.request_ids) * num_samples:
        reported.view(-1, num_samples)[silent] = torch.nan
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
