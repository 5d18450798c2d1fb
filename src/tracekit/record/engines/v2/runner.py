"""Hooks of Model Runner V2's runner: from the scheduler's message to sampled tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracekit.record.capture import Ints, LostTokens, RowsOf, TokenCapture, Weights
from tracekit.record.device import device_of, mark
from tracekit.record.engines.describe import dp_rank_of, request_columns
from tracekit.record.engines.hook import Hook
from tracekit.record.engines.lineage import kv_behind, weights_behind
from tracekit.record.engines.patching import wrap
from tracekit.record.engines.schedule import KnownRequest, SampleRows, Schedule, sample_rows, step_row
from tracekit.record.engines.v2 import prompts
from tracekit.record.engines.v2.sampler import Sampling, watch, watch_head
from tracekit.record.engines.worker import around_shutdown, is_first_rank, recorder_of_runner
from tracekit.record.pipeline import Recorder
from tracekit.record.unknown import UNKNOWN

_STATE = "_tracekit"

# Whether the engine warms up with requests of its own making, through the very methods that serve.
_is_warming_up = False


@dataclass
class _Step:
    """What one step shows before it samples."""

    started_ns: int
    clock_ns: int
    scheduler_output: Any
    weights: Weights = field(default_factory=Weights)
    kv_version_B: Ints | None = None
    cudagraph_mode: str | None = None
    failed: bool = False


@dataclass
class _RunnerState:
    """What the adapter remembers of a runner between the steps of one recording.

    Attributes:
        is_first: this rank tells what all ranks that sample know alike.
    """

    schedule: Schedule
    is_first: bool
    progress: prompts.Progress = field(default_factory=prompts.Progress)
    step: _Step | None = None


def _patch_runner(module: ModuleType) -> None:
    runner = module.GPUModelRunner
    for name, around in (
        ("execute_model", _around_execute_model),
        ("prepare_inputs", _around_prepare_inputs),
        ("sample", _around_sample),
        ("shutdown", around_shutdown),
    ):
        wrap(runner, name, around)


def _patch_warmup(module: ModuleType) -> None:
    wrap(module, "warmup_kernels", _around_warmup)
    wrap(module, "run_mixed_prefill_decode_warmup", _around_warmup)


HOOKS = {
    "vllm.v1.worker.gpu.model_runner": _patch_runner,
    "vllm.v1.worker.gpu.warmup": _patch_warmup,
}


def _around_warmup(original: Any, *args: Any, **kwargs: Any) -> Any:
    global _is_warming_up
    _is_warming_up = True
    try:
        return original(*args, **kwargs)
    finally:
        _is_warming_up = False


def _state(runner: Any, session: str) -> _RunnerState:
    state: _RunnerState | None = getattr(runner, _STATE, None)
    if state is None or state.schedule.session != session:
        is_first = is_first_rank(runner)
        schedule = Schedule(session, dp_rank_of(runner.vllm_config.parallel_config) or 0, tells_events=is_first)
        state = _RunnerState(schedule, is_first)
        setattr(runner, _STATE, state)
    return state


def _recorder(runner: Any) -> Recorder | None:
    """Returns the recorder of a rank that owns sampled rows; None elsewhere, and while nothing is recorded.

    All ranks of a tensor-parallel group sample the same rows, so the first one writes them; where sampling is
    sharded over the batch, each writes its own.
    """
    return recorder_of_runner(runner, sharded=runner.batch_sharder is not None)


# --- 1: the forward pass ---


def _around_execute_model(original: Any, runner: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
    is_dummy = kwargs.get("dummy_run", len(args) > 1 and args[1])
    recorder = None if is_dummy or _is_warming_up else _recorder(runner)
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
    state.progress.forget(step.scheduler_output.finished_req_ids)
    if runner.execute_model_state is None:
        # A step without a forward pass.
        state.step = None
        return
    request_ids = runner.execute_model_state.input_batch.req_ids
    step_id = state.schedule.step_id
    step.kv_version_B = kv_behind(runner, recorder, step_id, request_ids, tells=state.is_first)
    state.schedule.note_arrivals(recorder, step.scheduler_output, request_ids, _late_request(runner, recorder))


def _late_request(runner: Any, recorder: Recorder) -> Callable[[str], KnownRequest | None]:
    """Returns what notes a request that is older than the recorder.

    Of such a request this runner has its prompt, but not its sampling parameters.
    """

    def note(request_id: str) -> None:
        states = runner.req_states
        index = states.req_id_to_index[request_id]
        # Copied in the order of the stream: the write of the prompt may still be under way.
        prompt = states.all_token_ids.gpu[index, : int(states.prompt_len.np[index])].clone()
        ready = mark(prompt)

        def columns() -> dict[str, Any]:
            device = device_of(prompt)
            with device.after(ready):
                ids = device.to_host({"ids": prompt})["ids"].tolist()
            return request_columns(request_id, ids, None, None)

        recorder.put(RowsOf("requests", columns))

    return note


def _around_prepare_inputs(
    original: Any, runner: Any, scheduler_output: Any, state: Any, descriptor: Any, *args: Any, **kwargs: Any
) -> Any:
    own: _RunnerState | None = getattr(runner, _STATE, None)
    if own is not None and own.step is not None:
        own.step.cudagraph_mode = getattr(getattr(descriptor, "cg_mode", None), "name", None)
    return original(runner, scheduler_output, state, descriptor, *args, **kwargs)


# --- 2 to 6: from logits to sampled tokens ---


def _around_sample(original: Any, runner: Any, hidden_states: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
    state: _RunnerState | None = getattr(runner, _STATE, None)
    step = None if state is None else state.step
    recorder = _recorder(runner) if step is not None else None
    if state is None or step is None or recorder is None:
        return original(runner, hidden_states, input_batch, *args, **kwargs)
    where = "GPUModelRunner.sample"
    state.step = None
    sampling = Sampling()
    with Hook(recorder, where):
        if recorder.wants_hidden:
            watch_head(runner.model)
        watch(sampling)
    try:
        result = original(runner, hidden_states, input_batch, *args, **kwargs)
    finally:
        watch(None)
    with Hook(recorder, where) as hook:
        sampling.raise_failure()
        if not step.failed:
            _hand_over(runner, recorder, state, step, sampling, hidden_states, input_batch)
    if (hook.failed or step.failed) and sampling.output is not None:
        with Hook(recorder, where):
            recorder.put(_lost(sampling.output))
    recorder.step_ns += time.perf_counter_ns() - step.clock_ns
    recorder.num_steps += 1
    return result


def _hand_over(
    runner: Any,
    recorder: Recorder,
    state: _RunnerState,
    step: _Step,
    sampling: Sampling,
    hidden_states: Tensor,
    batch: Any,
) -> None:
    step_id = state.schedule.step_id
    state.schedule.step_counter += 1
    if state.is_first:
        recorder.put_later(_step_row(runner, step, batch, step_id, sampling.backend))
        prompts.expect(runner, recorder, state.progress, batch, step_id, step.weights, step.kv_version_B)
    if sampling.output is not None:
        if recorder.wants_hidden and runner.batch_sharder is not None:
            sampling.hidden_LH = hidden_states[sampling.batch.logits_indices]
        recorder.put_later(_capture(runner, batch, sampling, step_id, step, with_hidden=recorder.wants_hidden))


def _lost(output: Any) -> LostTokens:
    sampled_BD = output.sampled_token_ids
    place_D = torch.arange(sampled_BD.shape[1], device=sampled_BD.device)
    token_ids_BD = torch.where(place_D < output.num_sampled.unsqueeze(1), sampled_BD, -1)
    return LostTokens(token_ids_BD, np.ones(len(sampled_BD), np.bool_))


def _step_row(runner: Any, step: _Step, batch: Any, step_id: int, backend: str | None) -> RowsOf:
    known = {
        "step_id": step_id,
        "started_ns": step.started_ns,
        "padded_num_tokens": batch.num_tokens_after_padding,
        "cudagraph_mode": step.cudagraph_mode,
        "sampler_backend": backend,
        "weight_version": step.weights.version,
        "weight_label": step.weights.label,
    }
    if runner.speculative_config is not None and runner.scheduler_config.async_scheduling:
        # Scheduled before it is known how many drafts were accepted: the host's figures are upper bounds.
        known["computed_tokens"] = None
    scheduled_B, computed_B = batch.num_scheduled_tokens.copy(), batch.num_computed_tokens_np.copy()
    return step_row(list(batch.req_ids), scheduled_B, computed_B, ~batch.is_prefilling_np, **known)


def _capture(
    runner: Any, batch: Any, sampling: Sampling, step_id: int, step: _Step, *, with_hidden: bool
) -> TokenCapture:
    own, output = sampling.batch, sampling.output
    if runner.adaptive_verification is not None and own.num_draft_tokens:
        raise RuntimeError("under adaptive verification only the device knows which logits rows belong to whom")
    rows = sample_rows(np.diff(own.cu_num_logits_np).astype(np.int64) - 1)
    batch_row_of = {request_id: row for row, request_id in enumerate(batch.req_ids)}
    place_L = np.arange(len(rows.batch_row_L))
    batch_index_R = np.array([batch_row_of[own.req_ids[row]] for row in rows.batch_row_L], np.int64)
    return TokenCapture(
        step_id=step_id,
        request_ids=[own.req_ids[row] for row in rows.batch_row_L],
        logits_row_R=place_L,
        sample_R=place_L,
        batch_index_R=batch_index_R,
        # The engine writes the next step's positions over these.
        position_R=own.positions[own.logits_indices] + 1,
        num_prompt_R=runner.req_states.prompt_len.np[own.idx_mapping_np][rows.batch_row_L],
        token_ids_S=_token_ids(own, output, rows),
        raw_LV=sampling.raw_LV,
        masked_LV=sampling.masked_LV,
        drawn=tuple(sampling.drawn),
        hidden_LH=sampling.hidden_LH if with_hidden else None,
        reported_S=_reported(runner, own, output, rows),
        draft_index_R=_draft_indices(own, rows),
        kv_version_R=None if step.kv_version_B is None else step.kv_version_B[batch_index_R],
        weights=step.weights,
        torch_softmax=False,
        ready=mark(output.sampled_token_ids),
    )


def _token_ids(own: Any, output: Any, rows: SampleRows) -> Tensor:
    """Returns the token of each logits row; negative where it has none.

    How many rows of a request count is known on the device only: none in the middle of a chunked prefill, and
    those up to the first rejected draft otherwise.
    """
    sampled_BD, num_sampled_B = output.sampled_token_ids, output.num_sampled
    if not rows.num_drafts_B.any():
        return torch.where(num_sampled_B > 0, sampled_BD[:, 0], -1)
    counts_B = own.cu_num_logits.diff()
    row_L = torch.repeat_interleave(counts_B, output_size=len(rows.batch_row_L))
    draft_L = own.expanded_local_pos.long()
    return torch.where(draft_L < num_sampled_B[row_L], sampled_BD[row_L, draft_L], -1)


def _draft_indices(own: Any, rows: SampleRows) -> Any:
    if own.num_draft_tokens_per_req is None:
        return None
    return np.where(rows.num_drafts_B[rows.batch_row_L] > 0, rows.draft_L, -1)


def _reported(runner: Any, own: Any, output: Any, rows: SampleRows) -> Tensor | None:
    """Returns the logprobs of the tokens as the engine reports them; UNKNOWN for requests that did not ask."""
    tensors = output.logprobs_tensors
    if tensors is None or not str(runner.model_config.logprobs_mode).endswith("logprobs"):
        return None
    reported_L: Tensor = tensors.logprobs[:, 0].clone()
    sampler = runner.sampler
    asked_B = sampler.sampling_states.num_logprobs[own.idx_mapping_np] >= 0
    asked_B |= sampler.logprob_token_ids_state.num_token_ids.np[own.idx_mapping_np] > 0
    if asked_B.all():
        return reported_L
    return reported_L.masked_fill_(device_of(reported_L).upload(~asked_B[rows.batch_row_L]), UNKNOWN)
