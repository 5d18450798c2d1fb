"""Builders of small traces, written by the real writer, with values that a test may override column by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracekit.fingerprint import prompt_hash
from tracekit.store import Manifest, TraceWriter, create_trace

START_NS = 1_700_000_000_000_000_000


@dataclass(frozen=True)
class MadeRequest:
    """The rows of one request, by table."""

    request: Mapping[str, Any]
    outcome: Mapping[str, Any] | None
    tokens: Mapping[str, Any]


def make_request(
    request_id: str = "r0",
    *,
    prompt: Sequence[int] | None = (1, 2, 3),
    token_ids: Sequence[int] = (10, 11, 12),
    logprob: float | Sequence[float] = -0.5,
    forced: bool | Sequence[bool] = False,
    temperature: float | None = 0.8,
    tokens: Mapping[str, Any] | None = None,
    outcome: Mapping[str, Any] | None = None,
    ended: bool = True,
    **columns: Any,
) -> MadeRequest:
    """Returns one request with its tokens; the token itself is the first of two candidates, one logit ahead.

    Args:
        request_id: the engine's id.
        prompt: its prompt ids; None leaves ids and hash unknown.
        token_ids: output tokens, one row each.
        logprob: of each token; processed_logprob is the same unless `tokens` says otherwise.
        forced: whether the tokens were given.
        temperature: of the request; 0 is greedy.
        tokens: further columns of `tokens`, a scalar or one value a row; they override the defaults.
        outcome: further columns of `outcomes`.
        ended: whether the request has an outcome.
        columns: further columns of `requests`.
    """
    num = len(token_ids)
    num_prompt = len(prompt or ())
    request = {
        "request_id": request_id,
        "temperature": temperature,
        "top_p": 1.0,
        "arrival_ns": START_NS,
        **({"num_prompt_tokens": num_prompt, "prompt_hash": prompt_hash(prompt)} if prompt is not None else {}),
        "prompt_token_ids": [list(prompt)] if prompt is not None else None,
        **columns,
    }
    rows: dict[str, Any] = {
        "request_id": request_id,
        "output_index": list(range(num)),
        "position": list(range(num_prompt, num_prompt + num)),
        "step_id": list(range(num)),
        "token_id": list(token_ids),
        "logit": 2.0,
        "logsumexp": 2.5,
        "logprob": logprob,
        "rank": 1,
        "num_tied": 0,
        "entropy": 1.0,
        "logit_min": -4.0,
        "argmax_token_id": list(token_ids),
        "top1_margin": 1.0,
        "top_token_ids": [[token, token + 1] for token in token_ids],
        "top_logits": [[2.0, 1.0]] * num,
        "processed_logprob": logprob,
        "kept_mass": 1.0,
        "processed_source": "recomputed",
        "forced": forced,
        "is_prompt": False,
    }
    ending = {"request_id": request_id, "finish_reason": "length", "finished_ns": START_NS + 5_000_000_000}
    return MadeRequest(
        request=request,
        outcome={**ending, "num_output_tokens": num, **(outcome or {})} if ended else None,
        tokens={**rows, **(tokens or {})},
    )


def make_trace(
    path: Path,
    *,
    requests: Sequence[MadeRequest] | None = None,
    role: str = "record",
    parent: Manifest | Path | None = None,
    run_id: str = "run",
    run: Mapping[str, Any] | None = None,
    events: Sequence[Mapping[str, Any]] = (),
    steps: Sequence[Mapping[str, Any]] = (),
    routes: Sequence[Mapping[str, Any]] = (),
    hidden: Sequence[Mapping[str, Any]] = (),
    sealed: bool = True,
) -> Path:
    """Writes a trace and returns its path.

    Args:
        path: where; must not exist.
        requests: what it holds; one default request otherwise.
        role: record, replay or trainer.
        parent: the trace that this one replays.
        run_id: of all its rows.
        run: further columns of its one row in `runs`.
        events: rows of `events`; time_ns is filled in.
        steps: rows of `steps`; step_id is filled in.
        routes: rows of `routes`, or several a mapping.
        hidden: rows of `hidden`, or several a mapping.
        sealed: whether rows end up in parts; journals are left behind otherwise, as by a killed process.
    """
    made = [make_request()] if requests is None else requests
    of = Manifest.read(parent) if isinstance(parent, Path) else parent
    create_trace(path, role, parent=of.trace_id if of else None)  # type: ignore[arg-type]
    writer = TraceWriter(path, run_id=run_id, writer="w0")
    defaults = {
        "writer": "w0",
        "role": role,
        "process": "all",
        "started_ns": START_NS,
        "engine": "vllm",
        "engine_version": "0.32.0",
        "engine_generation": "v1",
        "model": "tiny",
        "dtype": "bfloat16",
        "head_output_dtype": "bfloat16",
    }
    writer.append("runs", {**defaults, **(run or {})})
    for one in made:
        writer.append("requests", one.request)
        if one.outcome is not None:
            writer.append("outcomes", one.outcome)
        if len(one.tokens["token_id"]):
            writer.append("tokens", one.tokens)
    for index, event in enumerate(events):
        writer.append("events", {"time_ns": START_NS + index, **event})
    for index, step in enumerate(steps):
        writer.append("steps", {"step_id": index, **step})
    for route in routes:
        writer.append("routes", route)
    for rows in hidden:
        writer.append("hidden", rows)
    if sealed:
        writer.close()
    else:
        writer.flush()
    return path
