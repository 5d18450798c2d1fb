"""Prompt positions that the V1 runner scores for requests with prompt logprobs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tracekit.record.capture import Ints, TokenCapture, Weights
from tracekit.record.device import device_of, mark
from tracekit.record.engines.patching import wrap


class Chunk(NamedTuple):
    """The prompt positions of one request that one step scores.

    Attributes:
        first: position of the first scored token.
        table: where the engine gathers the request's prompt logprobs, one row a position from 1; None before.
        hidden_PH: the hidden states they are scored from; None where these are not captured.
    """

    request_id: str
    batch_row: int
    first: int
    length: int
    table: Any
    hidden_PH: Tensor | None


# Logits of prompt positions, in the order the engine computes them; None while nobody listens.
_heard: list[Tensor] | None = None


def _around_compute_logits(original: Any, *args: Any, **kwargs: Any) -> Any:
    logits = original(*args, **kwargs)
    if _heard is not None:
        _heard.append(logits)
    return logits


def begin(runner: Any, hidden_states: Tensor, num_scheduled_tokens: Any, *, with_hidden: bool) -> list[Chunk]:
    """Starts to listen, and returns what the engine is about to score, in its order."""
    global _heard
    wrap(type(runner.get_model()), "compute_logits", _around_compute_logits)
    chunks = []
    for request_id in runner.num_prompt_logprobs:
        request = runner.requests[request_id]
        num_tokens = num_scheduled_tokens.get(request_id)
        if num_tokens is None or request.prompt_token_ids is None:
            continue
        first = request.num_computed_tokens + 1
        length = min(num_tokens, len(request.prompt_token_ids) - first)
        if length <= 0:
            continue
        row = runner.input_batch.req_id_to_index[request_id]
        start = int(runner.query_start_loc.np[row])
        # The forward pass writes its hidden states over these in the next step.
        hidden_PH = hidden_states[start : start + length].clone() if with_hidden else None
        chunks.append(Chunk(request_id, row, first, length, request.in_progress_prompt_logprobs_cpu, hidden_PH))
    _heard = []
    return chunks


def end() -> list[Tensor]:
    """Stops listening and returns what was heard."""
    global _heard
    heard, _heard = _heard or [], None
    return heard


def captures(
    runner: Any,
    chunks: list[Chunk],
    rows: list[Tensor],
    results: Any,
    step_id: int,
    weights: Weights,
    kv_version_B: Ints | None,
) -> list[TokenCapture]:
    """Returns the captures of scored prompt positions.

    Raises:
        RuntimeError: the engine scored other positions than was expected.
    """
    if [len(logits) for logits in rows] != [chunk.length for chunk in chunks]:
        found, expected = [len(logits) for logits in rows], [chunk.length for chunk in chunks]
        raise RuntimeError(f"prompt logprobs of {found} positions were computed, {expected} were expected")
    captured = []
    for chunk, raw in zip(chunks, rows, strict=True):
        capture = _capture(runner, chunk, raw, results, step_id)
        kv = None if kv_version_B is None else np.full(chunk.length, kv_version_B[chunk.batch_row])
        captured.append(replace(capture, weights=weights, kv_version_R=kv))
    return captured


def _capture(runner: Any, chunk: Chunk, raw_PV: Tensor, results: Any, step_id: int) -> TokenCapture:
    request = runner.requests[chunk.request_id]
    tokens = request.prompt_token_ids[chunk.first : chunk.first + chunk.length]
    places = np.arange(chunk.length)
    table = chunk.table or results.get(chunk.request_id) or request.in_progress_prompt_logprobs_cpu
    is_logprob = str(runner.vllm_config.model_config.logprobs_mode).endswith("logprobs")
    # Row i is of position i + 1, its first entry the prompt's own token. Copied to the host by the engine.
    reported = table.logprobs[chunk.first - 1 : chunk.first - 1 + chunk.length, 0] if is_logprob and table else None
    return TokenCapture(
        step_id=step_id,
        request_ids=[chunk.request_id] * chunk.length,
        logits_row_R=places,
        sample_R=places,
        batch_index_R=np.full(chunk.length, chunk.batch_row),
        position_R=places + chunk.first,
        num_prompt_R=np.full(chunk.length, len(request.prompt_token_ids)),
        token_ids_S=device_of(raw_PV).upload(np.array(tokens, np.int64)),
        raw_LV=raw_PV,
        hidden_LH=chunk.hidden_PH,
        reported_S=reported,
        is_prompt=True,
        ready=mark(raw_PV),
    )
