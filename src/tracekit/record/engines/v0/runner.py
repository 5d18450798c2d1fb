"""Hooks of the V0 model runner: from the scheduled batch to sampled tokens.

Shape suffixes: B requests of the batch, L rows of the logits, R rows that count.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tracekit.record.capture import Ints, LostTokens, RequestSeen, TokenCapture, known_row
from tracekit.record.device import mark
from tracekit.record.engines.describe import request_columns
from tracekit.record.engines.hook import Hook
from tracekit.record.engines.patching import wrap
from tracekit.record.engines.schedule import step_row
from tracekit.record.engines.v0.sampler import Passing, watch
from tracekit.record.engines.v0.state import EngineState, state_of
from tracekit.record.unknown import UNKNOWN

_BATCH = "_tracekit_batch"

_local = threading.local()


@dataclass
class _Batch:
    """The requests of one step, each with one sequence; taken before the engine goes on to use their objects.

    Attributes:
        sampling: the step's SamplingMetadata, whose `seq_groups` are in the order of the requests.
        computed_B: tokens whose KV existed before the step.
        scheduled_B: tokens computed in it.
        num_prompt_B: prompt tokens.
        is_decode_B: whether the newest token is computed, rather than a prompt or a recomputation.
    """

    sampling: Any
    request_ids: list[str]
    computed_B: Ints
    scheduled_B: Ints
    num_prompt_B: Ints
    is_decode_B: npt.NDArray[np.bool_]


def _patch_cpu_runner(module: ModuleType) -> None:
    _patch_runner(module.CPUModelRunner)


def _patch_gpu_runner(module: ModuleType) -> None:
    _patch_runner(module.ModelRunner)
    wrap(module.ModelRunner, "profile_run", _around_profile_run)


def _patch_runner(runner: type) -> None:
    wrap(runner, "prepare_model_input", _around_prepare)
    wrap(runner, "execute_model", _around_execute_model)


HOOKS = {
    "vllm.worker.cpu_model_runner": _patch_cpu_runner,
    "vllm.worker.model_runner": _patch_gpu_runner,
}


def _around_profile_run(original: Any, *args: Any, **kwargs: Any) -> Any:
    # It runs made-up requests through the very same methods.
    _local.profiling = True
    try:
        return original(*args, **kwargs)
    finally:
        _local.profiling = False


def _state(runner: Any) -> EngineState | None:
    state = None if getattr(_local, "profiling", False) else state_of(runner)
    return None if state is None or state.unrecorded is not None else state


# --- 1: who is in the batch ---


def _around_prepare(original: Any, runner: Any, seq_group_metadata_list: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(runner, seq_group_metadata_list, *args, **kwargs)
    state = _state(runner)
    if state is not None and result.sampling_metadata is not None:
        with Hook(state.recorder, "ModelRunner.prepare_model_input"):
            setattr(runner, _BATCH, _batch(seq_group_metadata_list, result.sampling_metadata))
            for metadata in seq_group_metadata_list:
                _note_scheduled(runner, state, metadata)
    return result


def _batch(metadata_list: Any, sampling: Any) -> _Batch:
    computed, scheduled, num_prompt = [], [], []
    for group in sampling.seq_groups:
        (data,) = group.seq_data.values()
        if group.is_prompt:
            # What the prefix cache had is not computed, though it was scheduled.
            scheduled.append(group.query_len)
            computed.append(group.seq_len - group.query_len)
        else:
            scheduled.append(1)
            computed.append(data.get_len() - 1)
        num_prompt.append(data.get_prompt_len())
    return _Batch(
        sampling,
        [metadata.request_id for metadata in metadata_list],
        np.array(computed, np.int64),
        np.array(scheduled, np.int64),
        np.array(num_prompt, np.int64),
        np.array([not group.is_prompt for group in sampling.seq_groups], np.bool_),
    )


def _note_scheduled(runner: Any, state: EngineState, metadata: Any) -> None:
    request_id = metadata.request_id
    if request_id in state.preempted:
        state.preempted.discard(request_id)
        state.num_resumed[request_id] = state.num_resumed.get(request_id, 0) + 1
        state.recorder.event("request_resumed", request_id=request_id, step_id=state.step_id)
    if request_id in state.seen:
        return
    state.seen.add(request_id)
    (data,) = metadata.seq_data.values()
    prompt, output = data.prompt_token_ids, data.output_token_ids
    cached = len(metadata.computed_block_nums or ()) * runner.block_size if runner.sliding_window is None else 0
    if request_id in state.announced:
        state.recorder.put(known_row("requests", {"request_id": request_id, "num_cached_tokens": cached}))
        return
    params, lora = metadata.sampling_params, metadata.lora_request

    def columns() -> dict[str, Any]:
        # It came before the recorder did: how many samples there are, and what was cached, is not known here.
        return request_columns(request_id, prompt, params, lora) | {"n": None}

    state.recorder.put(RequestSeen("requests", columns, output, params.extra_args))


# --- 2 to 6: the forward pass and the sampled tokens ---


def _around_execute_model(original: Any, runner: Any, model_input: Any, *args: Any, **kwargs: Any) -> Any:
    state = _state(runner)
    if state is None:
        return original(runner, model_input, *args, **kwargs)
    recorder, where = state.recorder, "ModelRunner.execute_model"
    passing = Passing(recorder.wants_hidden)
    started_ns, clock_ns = time.time_ns(), time.perf_counter_ns()
    with Hook(recorder, where):
        recorder.release()
        watch(passing)
    try:
        result = original(runner, model_input, *args, **kwargs)
    finally:
        watch(None)
    if isinstance(result, list) and len(result) == 1:
        with Hook(recorder, where) as hook:
            passing.raise_failure()
            _hand_over(state, _prepared(runner, model_input), passing, result[0], started_ns)
        if hook.failed:
            with Hook(recorder, where):
                recorder.put(_lost(result[0]))
    recorder.step_ns += time.perf_counter_ns() - clock_ns
    recorder.num_steps += 1
    return result


def _prepared(runner: Any, model_input: Any) -> _Batch:
    batch: _Batch | None = getattr(runner, _BATCH, None)
    setattr(runner, _BATCH, None)
    if batch is None or batch.sampling is not model_input.sampling_metadata:
        raise RuntimeError("the model input of this step was not seen when it was prepared")
    return batch


def _lost(output: Any) -> LostTokens:
    num_lost = sum(len(group.samples) + len(group.prompt_logprobs or ()) for group in output.outputs)
    return LostTokens(torch.zeros(num_lost, 1, dtype=torch.int64), np.ones(num_lost, np.bool_))


def _hand_over(state: EngineState, batch: _Batch, passing: Passing, output: Any, started_ns: int) -> None:
    row = step_row(
        batch.request_ids,
        batch.scheduled_B,
        batch.computed_B,
        batch.is_decode_B,
        step_id=state.step_id,
        started_ns=started_ns,
        sampler_backend=passing.backend,
        weight_version=state.weights.version,
        weight_label=state.weights.label,
    )
    gathered = ((_scored_prompts(batch, output), True), (_sampled(batch, output), False))
    captures = [_capture(state, batch, passing, rows, is_prompt=p) for rows, p in gathered if rows.token_ids]
    state.recorder.put_later(row, *captures)
    state.step_id += 1


class _Rows:
    """Tokens that count, gathered one by one."""

    def __init__(self) -> None:
        self.batch_rows: list[int] = []
        self.logits_rows: list[int] = []
        self.positions: list[int] = []
        self.token_ids: list[int] = []
        self.reported: list[float] = []

    def add(self, batch_row: int, logits_row: int, position: int, token_id: int, entries: Any) -> None:
        """Takes a token; `entries` are the logprobs that the engine returns there, or None."""
        entry = None if entries is None else entries.get(token_id)
        self.batch_rows.append(batch_row)
        self.logits_rows.append(logits_row)
        self.positions.append(position)
        self.token_ids.append(token_id)
        self.reported.append(UNKNOWN if entry is None else entry.logprob)


def _sampled(batch: _Batch, output: Any) -> _Rows:
    rows = _Rows()
    end_B = batch.computed_B + batch.scheduled_B
    for row, (group, of_group) in enumerate(zip(batch.sampling.seq_groups, output.outputs, strict=True)):
        is_asked = group.sampling_params.logprobs is not None
        # A prompt that is not through yet has no sample.
        for logits_row, sample in zip(group.sample_indices, of_group.samples, strict=True):
            entries = sample.logprobs if is_asked else None
            rows.add(row, logits_row, int(end_B[row]), sample.output_token, entries)
    return rows


def _scored_prompts(batch: _Batch, output: Any) -> _Rows:
    rows = _Rows()
    for row, (group, of_group) in enumerate(zip(batch.sampling.seq_groups, output.outputs, strict=True)):
        if not group.prompt_logprob_indices:
            continue
        (data,) = group.seq_data.values()
        first = int(batch.computed_B[row]) + 1
        scored = zip(
            group.prompt_logprob_indices, data.prompt_token_ids[first:], of_group.prompt_logprobs, strict=False
        )
        for place, (logits_row, token_id, entries) in enumerate(scored):
            rows.add(row, logits_row, first + place, token_id, entries)
    return rows


def _capture(state: EngineState, batch: _Batch, passing: Passing, rows: _Rows, *, is_prompt: bool) -> TokenCapture:
    assert passing.raw_LV is not None
    device = passing.raw_LV.device
    batch_index_R = np.array(rows.batch_rows, np.int64)
    return TokenCapture(
        step_id=state.step_id,
        request_ids=[batch.request_ids[row] for row in rows.batch_rows],
        logits_row_R=np.array(rows.logits_rows, np.int64),
        sample_R=np.arange(len(rows.token_ids)),
        batch_index_R=batch_index_R,
        position_R=np.array(rows.positions, np.int64),
        num_prompt_R=batch.num_prompt_B[batch_index_R],
        token_ids_S=torch.tensor(rows.token_ids, dtype=torch.int64).to(device, non_blocking=True),
        raw_LV=passing.raw_LV,
        drawn=() if is_prompt else passing.drawn,
        hidden_LH=passing.hidden_LH,
        reported_S=torch.tensor(rows.reported, dtype=torch.float32).to(device, non_blocking=True),
        kv_version_R=None if state.kv_version_B is None else state.kv_version_B[batch_index_R],
        weights=state.weights,
        is_prompt=is_prompt,
        ready=mark(passing.raw_LV),
    )
