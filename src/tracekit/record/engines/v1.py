"""Hooks of the V1 model runner, in the process that samples.

Sites (vLLM 0.32), with the capture points of `capture.py`:
    GPUModelRunner.execute_model      1, 2
    GPUModelRunner.sample_tokens      3
    Sampler.sample, apply_top_k_top_p 4
    GPUModelRunner._sample            5, 6
    GPUModelRunner.shutdown           the end
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracekit.record.capture import RequestGone, RequestSeen, StepCapture, known_row
from tracekit.record.engines.describe import dtype_name, instance_of, request_columns, run_columns
from tracekit.record.engines.hook import Hook
from tracekit.record.engines.patching import wrap
from tracekit.record.pipeline import Recorder
from tracekit.record.registry import active_config, deactivate, recorder_of

logger = logging.getLogger("tracekit")

_STATE = "_tracekit"


@dataclass
class _Step:
    """What one step shows on its way from the forward pass to the sampled tokens."""

    started_ns: int
    clock_ns: int
    scheduler_output: Any
    request_ids: list[str] = field(default_factory=list)
    computed: npt.NDArray[np.int32] | None = None
    scheduled: npt.NDArray[np.int32] | None = None
    num_tokens: npt.NDArray[np.int32] | None = None
    num_prompt: npt.NDArray[np.int32] | None = None
    raw: Tensor | None = None
    masked: Tensor | None = None
    processed: Tensor | None = None
    sampler_backend: str | None = None
    padded: int | None = None
    cudagraph_mode: str | None = None


@dataclass
class _RunnerState:
    """What the adapter remembers of a runner between the steps of one recording."""

    session: str
    seen: set[str] = field(default_factory=set)
    num_resumed: dict[str, int] = field(default_factory=dict)
    step_counter: int = 0
    step: _Step | None = None
    speculative_reported: bool = False


# The step that is being sampled: the sampler does not know its runner. One thread samples in a worker.
_sampling: _Step | None = None


def _patch_runner(module: ModuleType) -> None:
    runner = module.GPUModelRunner
    for name, around in (
        ("execute_model", _around_execute_model),
        ("sample_tokens", _around_sample_tokens),
        ("_sample", _around_sample),
        ("_determine_batch_execution_and_padding", _around_padding),
        ("shutdown", _around_shutdown),
    ):
        wrap(runner, name, around)


def _patch_sampler(module: ModuleType) -> None:
    wrap(module.Sampler, "sample", _around_sampler_sample)


def _patch_truncation(module: ModuleType) -> None:
    wrap(module, "apply_top_k_top_p", _around_truncation)


HOOKS = {
    "vllm.v1.worker.gpu_model_runner": _patch_runner,
    "vllm.v1.sample.sampler": _patch_sampler,
    "vllm.v1.sample.ops.topk_topp_sampler": _patch_truncation,
}


def _state(runner: Any, session: str) -> _RunnerState:
    state: _RunnerState | None = getattr(runner, _STATE, None)
    if state is None or state.session != session:
        state = _RunnerState(session)
        setattr(runner, _STATE, state)
    return state


def _current_step(runner: Any) -> _Step | None:
    state: _RunnerState | None = getattr(runner, _STATE, None)
    return None if state is None else state.step


def _recorder(runner: Any) -> Recorder | None:
    config = active_config()
    if config is None:
        return None
    try:
        return recorder_of(instance_of(runner.vllm_config), "worker", lambda: describe_runner(runner))
    except Exception as error:
        if config.strict:
            raise
        logger.error("tracekit: recorder disabled, the engine goes on: %r", error)
        deactivate()
        return None


def _head_dtypes(runner: Any) -> dict[str, str | None]:
    """Returns the dtypes of the last projection; null where this model keeps its head elsewhere."""
    model = runner.get_model()
    weight = getattr(getattr(getattr(model, "lm_head", None), "weight", None), "dtype", None)
    output = getattr(getattr(model, "logits_processor", None), "head_dtype", None) or weight
    # Where vLLM makes an fp32 head, a GPU multiplies the stored operands into an fp32 result; others cast them.
    operand = weight if runner.device.type == "cuda" and output == torch.float32 else output
    names = ("head_weight_dtype", "head_operand_dtype", "head_output_dtype")
    return {name: dtype_name(dtype) for name, dtype in zip(names, (weight, operand, output), strict=True)}


def describe_runner(runner: Any) -> dict[str, Any]:
    """Returns the `runs` columns of the process that samples."""
    columns = run_columns(runner.vllm_config, "v1") | _head_dtypes(runner)
    try:
        columns["attention_backend"] = runner.attn_groups[0][0].backend.get_name()
    except (AttributeError, IndexError):
        columns["attention_backend"] = None
    return columns


# --- 1, 2: the forward pass ---


def _around_execute_model(original: Any, runner: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
    recorder = _recorder(runner)
    if recorder is None:
        return original(runner, scheduler_output, *args, **kwargs)
    where = "GPUModelRunner.execute_model"
    state = _state(runner, recorder.config.session)
    with Hook(recorder, where):
        recorder.release()
        state.step = _Step(time.time_ns(), time.perf_counter_ns(), scheduler_output)
    result = original(runner, scheduler_output, *args, **kwargs)
    with Hook(recorder, where) as hook:
        _after_forward(runner, recorder, state)
    if hook.failed:
        state.step = None
    return result


def _after_forward(runner: Any, recorder: Recorder, state: _RunnerState) -> None:
    step = state.step
    assert step is not None
    _note_departures(recorder, state, step.scheduler_output)
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
    _note_arrivals(runner, recorder, state, step)


def _note_departures(recorder: Recorder, state: _RunnerState, scheduler_output: Any) -> None:
    for request_id in scheduler_output.finished_req_ids:
        state.seen.discard(request_id)
        row = {"request_id": request_id, "num_preemptions": state.num_resumed.pop(request_id, 0)}
        recorder.put(known_row("outcomes", row))
        recorder.put(RequestGone(request_id))


def _note_arrivals(runner: Any, recorder: Recorder, state: _RunnerState, step: _Step) -> None:
    resumed = step.scheduler_output.scheduled_cached_reqs.resumed_req_ids
    for request_id in resumed:
        state.num_resumed[request_id] = state.num_resumed.get(request_id, 0) + 1
        recorder.event("request_resumed", request_id=request_id, step_id=_step_id(runner, state))
    if state.seen.issuperset(step.request_ids):
        return
    new = {data.req_id: data for data in step.scheduler_output.scheduled_new_reqs}
    for request_id in step.request_ids:
        if request_id in state.seen:
            continue
        state.seen.add(request_id)
        cached = new[request_id].num_computed_tokens if request_id in new else None
        request = runner.requests[request_id]
        output = () if request_id in new else tuple(request.output_token_ids)
        recorder.put(RequestSeen("requests", _request_columns(request, cached), output))


def _request_columns(request: Any, num_cached_tokens: int | None) -> Any:
    def columns() -> dict[str, Any]:
        own = request_columns(request.req_id, request.prompt_token_ids, request.sampling_params, request.lora_request)
        # For n > 1 a worker sees one of the samples: how many there are is the front end's to say.
        own.pop("n", None)
        return own | {"num_cached_tokens": num_cached_tokens}

    return columns


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
    recorder = _recorder(runner) if step is not None else None
    if step is not None and recorder is not None:
        with Hook(recorder, "GPUModelRunner.sample_tokens"):
            _keep_raw(step, masked=grammar_output is not None)
    return original(runner, grammar_output, *args, **kwargs)


def _keep_raw(step: _Step, *, masked: bool) -> None:
    """Copies the raw logits where the mask, or the sampler on float32 logits, is about to work on them in place."""
    live = step.raw
    if live is not None and (masked or live.dtype == torch.float32):
        step.raw = live.clone()
        step.masked = live if masked else None


# --- 4: the distribution drawn from ---


def _around_sampler_sample(original: Any, sampler: Any, logits: Any, metadata: Any, *args: Any, **kwargs: Any) -> Any:
    step = _sampling
    if step is not None:
        if getattr(metadata, "all_greedy", False):
            step.processed, step.sampler_backend = logits, "greedy"
        else:
            step.sampler_backend = _backend_name(sampler)
    return original(sampler, logits, metadata, *args, **kwargs)


def _backend_name(sampler: Any) -> str | None:
    forward = getattr(getattr(sampler, "topk_topp_sampler", None), "forward", None)
    name = getattr(forward, "__name__", None)
    # The CUDA path is FlashInfer unless it falls back; then the truncation below passes by.
    known = {"forward_cpu": "cpu", "forward_native": "native", "forward_cuda": "flashinfer"}
    return None if name is None else known.get(name, name)


def _around_truncation(original: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(*args, **kwargs)
    if _sampling is not None:
        _sampling.processed = result
        if _sampling.sampler_backend == "flashinfer":
            _sampling.sampler_backend = "native"
    return result


# --- 5, 6: the sampled tokens ---


def _around_sample(
    original: Any, runner: Any, logits: Any, spec_decode_metadata: Any, *args: Any, **kwargs: Any
) -> Any:
    global _sampling
    step = _current_step(runner)
    recorder = _recorder(runner) if step is not None else None
    if step is None or recorder is None:
        return original(runner, logits, spec_decode_metadata, *args, **kwargs)
    where = "GPUModelRunner._sample"
    with Hook(recorder, where):
        if step.masked is not None and logits.dtype == torch.float32:
            step.masked = logits.clone()
    _sampling = step if spec_decode_metadata is None else None
    try:
        output = original(runner, logits, spec_decode_metadata, *args, **kwargs)
    finally:
        _sampling = None
    state = _state(runner, recorder.config.session)
    state.step = None
    with Hook(recorder, where):
        if spec_decode_metadata is not None:
            _report_speculative(recorder, state)
        recorder.put_later(_capture(runner, state, step, output, spec_decode_metadata is None))
    recorder.step_ns += time.perf_counter_ns() - step.clock_ns
    recorder.num_steps += 1
    return output


def _capture(runner: Any, state: _RunnerState, step: _Step, output: Any, with_rows: bool) -> StepCapture:
    assert step.computed is not None
    assert step.scheduled is not None
    assert step.num_tokens is not None
    assert step.num_prompt is not None
    n = len(step.request_ids)
    position = step.computed + step.scheduled
    # A row in the middle of a chunked prefill, or of a recomputation, is sampled too and thrown away.
    kept = np.flatnonzero(~runner.discard_request_mask.np[:n]) if with_rows else np.empty(0, np.int64)
    decode = (step.computed >= step.num_prompt) & (position >= step.num_tokens)
    num_scheduled = int(step.scheduled.sum())
    num_decode = int(step.scheduled[decode].sum())
    columns = {
        "step_id": _step_id(runner, state),
        "started_ns": step.started_ns,
        "num_requests": n,
        "num_scheduled_tokens": num_scheduled,
        "num_prefill_tokens": num_scheduled - num_decode,
        "num_decode_tokens": num_decode,
        "padded_num_tokens": step.padded,
        "cudagraph_mode": step.cudagraph_mode,
        "sampler_backend": step.sampler_backend,
        "request_ids": step.request_ids,
        "scheduled_tokens": step.scheduled.tolist(),
        "computed_tokens": step.computed.tolist(),
    }
    state.step_counter += 1
    position_R = position[kept].astype(np.int32)
    has_rows = bool(len(kept))
    return StepCapture(
        step=columns,
        request_ids=[step.request_ids[i] for i in kept],
        rows_R=kept.astype(np.int64),
        output_index_R=(position_R - step.num_prompt[kept]).astype(np.int32),
        position_R=position_R,
        # The engine goes on to use its own copy of the ids.
        token_ids_B=output.sampled_token_ids[:, 0].clone(),
        raw_BV=step.raw if has_rows else None,
        masked_BV=step.masked if has_rows else None,
        processed_BV=step.processed if has_rows else None,
        reported_B=_reported(runner, step, output) if has_rows else None,
    )


def _reported(runner: Any, step: _Step, output: Any) -> Tensor | None:
    """Returns the logprobs of the sampled tokens as the engine reports them; NaN for requests that did not ask."""
    tensors = output.logprobs_tensors
    mode = str(runner.vllm_config.model_config.logprobs_mode)
    if tensors is None or not mode.endswith("logprobs"):
        return None
    if tensors.logprob_token_ids.numel():
        reported: Tensor = tensors.logprobs[:, 0].float().clone()
    else:
        reported = tensors.logprobs.gather(1, output.sampled_token_ids[:, :1].long())[:, 0].float()
    asked = runner.input_batch.num_logprobs
    silent = [i for i, request_id in enumerate(step.request_ids) if request_id not in asked]
    if silent:
        reported[silent] = torch.nan
    return reported


def _step_id(runner: Any, state: _RunnerState) -> int:
    parallel = runner.vllm_config.parallel_config
    return state.step_counter * int(parallel.data_parallel_size) + int(parallel.data_parallel_rank)


def _report_speculative(recorder: Recorder, state: _RunnerState) -> None:
    if not state.speculative_reported:
        state.speculative_reported = True
        recorder.event("recorder_error", where="GPUModelRunner._sample", error="speculative decoding is not recorded")


def _around_shutdown(original: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    recorder = _recorder(runner)
    if recorder is not None:
        # A worker process ends with its runner, and has little time to; a front end may still have endings to tell.
        if recorder.process == "worker":
            recorder.close()
        else:
            recorder.seal()
    return original(runner, *args, **kwargs)
