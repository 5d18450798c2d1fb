"""Prompt positions that Model Runner V2 scores for requests with prompt logprobs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from tracekit.record.capture import Ints, TokenCapture, Weights
from tracekit.record.device import mark
from tracekit.record.engines.hook import Hook
from tracekit.record.engines.patching import wrap
from tracekit.record.pipeline import Recorder

_SCORING = "_tracekit_scoring"


@dataclass
class Progress:
    """How far the prompt of each request has been recorded: one that is preempted in its prompt is scored again."""

    next_position: dict[str, int] = field(default_factory=dict)

    def forget(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            self.next_position.pop(request_id, None)


@dataclass
class _Scoring:
    """What one step scores: the rows of its batch that are prompt positions somebody asked for.

    Attributes:
        row_N: where the hidden state of each lies in the step's.
        batch_row_N: row of its request in the batch.
        position_N: place of the token that it predicts.
        first_row: row of the hidden states that the engine's next chunk begins with.
    """

    recorder: Recorder
    batch: Any
    step_id: int
    weights: Weights
    kv_version_B: Ints | None
    row_N: Ints
    batch_row_N: Ints
    position_N: Ints
    num_prompt_B: Ints
    reports_logprobs: bool
    hidden_states: Tensor | None = None
    first_row: int = 0


# The step whose prompt positions are being scored. One thread samples in a worker.
_current: _Scoring | None = None


def _patch(module: ModuleType) -> None:
    wrap(module.PromptLogprobsWorker, "compute_prompt_logprobs", _around_prompt_logprobs)
    wrap(module, "compute_topk_scores", _around_scores)


HOOKS = {"vllm.v1.worker.gpu.sample.prompt_logprob": _patch}


def expect(
    runner: Any,
    recorder: Recorder,
    progress: Progress,
    batch: Any,
    step_id: int,
    weights: Weights,
    kv_version_B: Ints | None,
) -> None:
    """Has the prompt positions recorded that the engine scores next; nothing where nobody asked for any."""
    worker = runner.prompt_logprobs_worker
    asked_B = worker.uses_prompt_logprobs[batch.idx_mapping_np]
    if not asked_B.any():
        return
    num_prompt_B = runner.req_states.prompt_len.np[batch.idx_mapping_np]
    first_B = batch.num_computed_prefill_tokens_np
    # A request that comes back from a preemption with output tokens had its prompt scored before.
    asked_B = asked_B & (first_B < num_prompt_B) & (batch.prefill_len_np <= num_prompt_B)
    rows, batch_rows, positions = [], [], []
    for index in np.flatnonzero(asked_B):
        request_id, first = batch.req_ids[index], int(first_B[index])
        end = min(first + int(batch.num_scheduled_tokens[index]), int(num_prompt_B[index]) - 1)
        start = max(first, progress.next_position.get(request_id, 1) - 1)
        places = np.arange(start, max(start, end))
        progress.next_position[request_id] = max(start, end) + 1
        rows.append(places + int(batch.query_start_loc_np[index]) - first)
        batch_rows.append(np.full(len(places), index))
        positions.append(places + 1)
    if not any(map(len, rows)):
        return
    scoring = _Scoring(
        recorder,
        batch,
        step_id,
        weights,
        kv_version_B,
        np.concatenate(rows),
        np.concatenate(batch_rows),
        np.concatenate(positions),
        num_prompt_B,
        str(worker.logprobs_mode).endswith("logprobs"),
    )
    setattr(worker, _SCORING, scoring)


def _around_prompt_logprobs(
    original: Any, worker: Any, logits_fn: Any, hidden_states: Any, *args: Any, **kwargs: Any
) -> Any:
    global _current
    _current = worker.__dict__.pop(_SCORING, None)
    if _current is not None and _current.recorder.wants_hidden:
        _current.hidden_states = hidden_states
    try:
        return original(worker, logits_fn, hidden_states, *args, **kwargs)
    finally:
        _current = None


def _around_scores(original: Any, logits: Any, num_logprobs: Any, token_ids: Any, *args: Any, **kwargs: Any) -> Any:
    scores = original(logits, num_logprobs, token_ids, *args, **kwargs)
    if _current is not None:
        with Hook(_current.recorder, "PromptLogprobsWorker.compute_prompt_logprobs"):
            capture = _capture(_current, logits, token_ids, scores)
            if capture is not None:
                # Not held back: the logits of a long prompt are large, and where there is no room for them the
                # queue lets go of them before the engine makes the next chunk.
                _current.recorder.put(capture)
    return scores


def _capture(scoring: _Scoring, logits_PV: Tensor, token_ids_P: Tensor, scores: Any) -> TokenCapture | None:
    """Returns the capture of one chunk of the step's rows, new logits of which the engine lets go."""
    first, end = scoring.first_row, scoring.first_row + len(logits_PV)
    scoring.first_row = end
    inside = np.flatnonzero((scoring.row_N >= first) & (scoring.row_N < end))
    if not len(inside):
        return None
    batch_row_R = scoring.batch_row_N[inside]
    place_R = scoring.row_N[inside] - first
    # The forward pass writes its hidden states over these in the next step.
    hidden_PH = None if scoring.hidden_states is None else scoring.hidden_states[first:end].clone()
    return TokenCapture(
        step_id=scoring.step_id,
        request_ids=[scoring.batch.req_ids[row] for row in batch_row_R],
        logits_row_R=place_R,
        sample_R=place_R,
        batch_index_R=batch_row_R,
        position_R=scoring.position_N[inside],
        num_prompt_R=scoring.num_prompt_B[batch_row_R],
        token_ids_S=token_ids_P,
        raw_LV=logits_PV,
        hidden_LH=hidden_PH,
        reported_S=scores.logprobs[:, 0].clone() if scoring.reports_logprobs else None,
        kv_version_R=None if scoring.kv_version_B is None else scoring.kv_version_B[batch_row_R],
        weights=scoring.weights,
        is_prompt=True,
        torch_softmax=False,
        ready=mark(logits_PV),
    )
