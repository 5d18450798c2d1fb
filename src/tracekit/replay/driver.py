"""Runs a plan on a backend and writes what it finds as a trace of its own."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tracekit.errors import ConfigError, OutputExistsError
from tracekit.replay.aside import written_aside
from tracekit.replay.backends.base import Backend, build_options, load_backend
from tracekit.replay.plan import Plan, PlannedSequence
from tracekit.replay.runs import Origin, runs_row
from tracekit.store import Manifest, Trace, TraceWriter

__all__ = ["Progress", "ReplaySummary", "replay"]

DEFAULT_BATCH_TOKENS = 2048

# What the recorded engine did with a request, which a replay does not do again.
_OF_THE_ENGINE = {"num_cached_tokens": None, "num_external_cached_tokens": None}


@dataclass(frozen=True)
class Progress:
    """How far a replay is; time goes with input tokens, the result is counted in scored ones.

    Attributes:
        num_tokens, total_tokens: output tokens scored.
        num_input_tokens, total_input_tokens: tokens read by forward passes, prompts included.
        num_sequences, total_sequences: requests scored.
    """

    num_tokens: int
    total_tokens: int
    num_input_tokens: int
    total_input_tokens: int
    num_sequences: int
    total_sequences: int

    def after(self, sequence: PlannedSequence) -> Progress:
        """Returns the progress when one more sequence is written."""
        return dataclasses.replace(
            self,
            num_tokens=self.num_tokens + sequence.num_output_tokens,
            num_input_tokens=self.num_input_tokens + sequence.num_input_tokens,
            num_sequences=self.num_sequences + 1,
        )


@dataclass(frozen=True)
class ReplaySummary:
    """What a replay did.

    Attributes:
        path: the new trace.
        trace_id: its id.
        num_sequences: requests scored.
        num_tokens: output tokens scored.
        num_unscored_tokens: delivered tokens left out because their row, or one before it, is missing in the parent.
        seconds: time spent scoring and writing, without loading the model.
    """

    path: Path
    trace_id: str
    num_sequences: int
    num_tokens: int
    num_unscored_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds if self.seconds else 0.0


def replay(
    trace: Trace | Path | str,
    out: Path | str,
    *,
    backend: str = "hf",
    model: Path | str | None = None,
    limit: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    top_k: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> ReplaySummary:
    """Scores a trace's recorded tokens under another backend or precision, and writes a trace of role replay.

    Nothing stands at `out` until all is written: rows go to `<out>.partial`, which is renamed at the end, and
    removed when the replay fails.

    Args:
        trace: the parent, or its path.
        out: where the new trace goes.
        backend: name of an installed backend.
        model: the model, as the backend wants it named; a folder for 'hf'.
        limit: score the first so many requests only, in order of arrival.
        batch_tokens: most tokens of a forward pass, padding included; a longer sequence goes alone.
        top_k: number of candidates to keep a token; by default as many as the parent has.
        progress: called when scoring begins, and after each batch.
        options: the backend's own options (for 'hf': dtype, head_dtype, device); None is the default.

    Raises:
        NotATraceError, TraceFormatError: the parent cannot be read.
        OutputExistsError: `out` is taken.
        ConfigError: unknown backend or option, or an impossible value.
        BackendUnavailableError: the backend's software is missing.
        ModelError: the model is missing or does not fit the trace.
    """
    _check_positive("batch-tokens", batch_tokens)
    _check_positive("limit", limit)
    _check_positive("top-k", top_k)
    parent = trace if isinstance(trace, Trace) else Trace(trace)
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise OutputExistsError(f"{out} exists already; choose another path or remove it first")
    backend_type = load_backend(backend)
    backend_options = build_options(backend, backend_type.options_type, options)
    plan = Plan(parent, batch_tokens=batch_tokens, limit=limit)
    opened = backend_type.open(None if model is None else Path(model), backend_options)
    plan.check_model(str(model), opened.vocab_size, opened.max_num_tokens)

    driver_options = {"limit": limit, "batch_tokens": batch_tokens, "top_k": top_k}
    origin = Origin(backend, None if model is None else Path(model), driver_options | asdict(backend_options))
    started = time.monotonic()
    with written_aside(out, parent.manifest) as partial:
        trace_id = Manifest.read(partial).trace_id
        _write(partial, plan, opened, origin, top_k, progress or (lambda _: None))
    return ReplaySummary(
        path=out,
        trace_id=trace_id,
        num_sequences=len(plan.sequences),
        num_tokens=plan.num_output_tokens,
        num_unscored_tokens=plan.num_unscored_tokens,
        seconds=time.monotonic() - started,
    )


def _write(
    root: Path,
    plan: Plan,
    backend: Backend,
    origin: Origin,
    top_k: int | None,
    progress: Callable[[Progress], None],
) -> None:
    """Scores all batches; each of the parent's runs becomes a run of the new trace, so that ids stay unique."""
    run_ids = {parent_run: uuid.uuid4().hex for parent_run in plan.run_ids}
    state = Progress(0, plan.num_output_tokens, 0, plan.num_input_tokens, 0, len(plan.sequences))
    progress(state)
    with TraceWriter(root, run_id=next(iter(run_ids.values()))) as writer:
        for parent_run, run_id in run_ids.items():
            writer.append("runs", runs_row(origin, backend, writer.writer, run_id, parent_run))
        for batch in plan.batches():
            scored = backend.score([sequence for _, sequence in batch], top_k)
            for (planned, sequence), rows in zip(batch, scored, strict=True):
                run_id = run_ids[sequence.run_id]
                request = {name: [value] for name, value in sequence.request.items()}
                writer.append("requests", request | _OF_THE_ENGINE | {"run_id": run_id})
                writer.append("tokens", _token_rows(planned, rows.columns) | {"run_id": run_id})
                writer.append("outcomes", _outcome(planned) | {"run_id": run_id})
                state = state.after(planned)
            progress(state)


def _token_rows(planned: PlannedSequence, scored: Mapping[str, Any]) -> dict[str, Any]:
    output_index = np.arange(planned.num_output_tokens, dtype=np.int32)
    return {
        **scored,
        "request_id": planned.key[1],
        "output_index": output_index,
        "position": output_index + planned.num_prompt_tokens,
        "processed_source": "recomputed" if "processed_logprob" in scored else None,
        "forced": True,
        "is_prompt": False,
    }


def _outcome(planned: PlannedSequence) -> dict[str, Any]:
    return {
        "request_id": planned.key[1],
        "finish_reason": planned.outcome.get("finish_reason"),
        "stop_reason": planned.outcome.get("stop_reason"),
        "num_output_tokens": planned.num_output_tokens,
    }


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"{name} must be at least 1, not {value}")
