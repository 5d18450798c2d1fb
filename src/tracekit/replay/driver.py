"""Runs a plan on a backend and writes what it finds as a trace of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tracekit.cluster import Cluster
from tracekit.errors import BackendUnavailableError, ConfigError
from tracekit.memory import peak_memory
from tracekit.replay.backends.base import Backend, Kept, Rows, RunRows, build_options, load_backend
from tracekit.replay.parent import Key
from tracekit.replay.partial import PartialReplay
from tracekit.replay.plan import Plan, PlannedSequence
from tracekit.replay.runs import Origin, read_runs, runs_row
from tracekit.replay.selection import Selection
from tracekit.replay.vocabulary import check_tokenizer, warn_of_vocabulary
from tracekit.replay.workers.base import Opening, Workers
from tracekit.replay.workers.local import LocalWorker
from tracekit.store import Manifest, Trace, TraceWriter

__all__ = ["Progress", "ReplaySummary", "replay"]

# A killed replay loses what it scored since the last time.
SAVE_SECONDS = 10.0

# A backend that tells of steps counts them from 0 in each batch.
_STEPS_PER_BATCH = 1 << 20

# What the recorded engine did with a request, which a replay does not do again.
_OF_THE_ENGINE = {"num_cached_tokens": None, "num_external_cached_tokens": None}


@dataclass(frozen=True)
class Progress:
    """How far a replay is; time goes with input tokens, the result is counted in scored ones.

    Attributes:
        num_tokens, total_tokens: output tokens scored.
        num_input_tokens, total_input_tokens: tokens read by forward passes, prompts included.
        num_sequences, total_sequences: requests scored.
        num_resumed_tokens: output tokens that an earlier call had scored.
    """

    num_tokens: int
    total_tokens: int
    num_input_tokens: int
    total_input_tokens: int
    num_sequences: int
    total_sequences: int
    num_resumed_tokens: int

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
        num_resumed_tokens: of the output tokens, those that an earlier call had scored.
        seconds: time spent scoring and writing, without loading the model.
        peak_bytes: most memory that one process held: this one, an engine's or a worker of a cluster.
    """

    path: Path
    trace_id: str
    num_sequences: int
    num_tokens: int
    num_unscored_tokens: int
    num_resumed_tokens: int
    seconds: float
    peak_bytes: int

    @property
    def tokens_per_second(self) -> float:
        return (self.num_tokens - self.num_resumed_tokens) / self.seconds if self.seconds else 0.0


def replay(
    trace: Trace | Path | str,
    out: Path | str,
    *,
    backend: str = "hf",
    model: Path | str | None = None,
    only: Iterable[Key] | None = None,
    sample: int | None = None,
    limit: int | None = None,
    top_k: int | None = None,
    hidden: bool = False,
    logits: bool = False,
    free: str | None = None,
    weight_label: str | None = None,
    any_tokenizer: bool = False,
    restart: bool = False,
    cluster: Cluster | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> ReplaySummary:
    """Scores a trace's recorded tokens under another backend or precision, and writes a trace of role replay.

    Nothing stands at `out` until all is written: rows go to `<out>.partial`, which is renamed at the end. A replay
    that was killed, or failed on its way, goes on from there when it is called again with the same arguments.

    Args:
        trace: the parent, or its path.
        out: where the new trace goes.
        backend: name of an installed backend.
        model: the model, as the backend wants it named; a folder for 'hf'.
        only: score these requests only, each as (run_id, request_id).
        sample: of those, score so many that stand for all; the same ones in every replay.
        limit: of those, score the first so many only, in order of arrival.
        top_k: number of candidates to keep a token; by default as many as the parent has.
        hidden, logits: also keep each token's final hidden state, or whole row of logits.
        free: 'engine' samples anew, with the recorded seeds and parameters, on a backend that can; 'coupled' tells
            for each token which one the recorded draw's random numbers would have picked (column
            `coupled_token_id`), for recordings of Model Runner V2.
        weight_label: what the model's weights are called, for the column of that name.
        any_tokenizer: go on where the model's tokenizer files are not the recorded ones.
        restart: throw away what an unfinished replay of another kind left, and begin anew.
        cluster: spread the work over a Ray cluster; the result is the same.
        progress: called when scoring begins, and after each batch.
        options: the backend's own options; None is the default.

    Raises:
        NotATraceError, TraceFormatError: the parent cannot be read.
        OutputExistsError: `out` is taken, or `<out>.partial` was begun by another command.
        ConfigError: unknown backend or option, or an impossible value.
        BackendUnavailableError: the backend's software is missing, or the cluster's.
        ModelError: the model is missing or does not fit the trace.
    """
    selection = Selection(None if only is None else frozenset(only), sample, limit)
    kept = Kept(top_k, hidden, logits, free)
    _check_positive("top-k", top_k)
    parent = trace if isinstance(trace, Trace) else Trace(trace)
    open_workers = _opener(cluster)
    backend_type = load_backend(backend)
    backend_options = build_options(backend, backend_type.options_type, options)
    _check_kept(backend, backend_type, kept)
    if cluster is not None and not backend_type.in_process:
        raise ConfigError(f"replay backend '{backend}' brings an engine of its own and is not spread over a cluster")
    runs = read_runs(parent)
    _check_draws(backend, backend_type, free, runs)
    named = backend_type.named_model(None if model is None else Path(model), backend_options)
    own = {"weight_label": weight_label, "any_tokenizer": any_tokenizer}
    asked = selection.described() | asdict(kept) | own | backend_type.described(backend_options)
    origin = Origin(backend, named, asked)
    partial = PartialReplay(Path(out), {"trace": parent.manifest.trace_id} | origin.described(), restart=restart)
    plan = Plan(parent, selection, needs=backend_type.needs(backend_options))
    run_ids = frozenset(plan.run_ids)
    runs = [run for run in runs if run["run_id"] in run_ids]
    if not any_tokenizer:
        check_tokenizer(runs, named)
    workers = open_workers(Opening(backend, named, backend_type.completed(backend_options, runs), kept))
    facts = workers.facts
    with contextlib.closing(workers), partial:
        plan.check_model("the model" if named is None else str(named), facts.vocab_size, facts.max_num_tokens)
        if facts.adapters is not None:
            plan.check_adapters(facts.adapters)
        warn_of_vocabulary(runs, named, facts.vocab_size)
        batches = plan.cut(facts.batch_limits)
        started = time.monotonic()
        planned = {"plan": plan.digest(), "num_batches": len(batches)} | facts.arithmetic
        partial.begin(parent.manifest, planned, plan.run_ids)
        resumed = sum(sequence.num_output_tokens for batch in batches[: partial.num_batches] for sequence in batch)
        trace_id = Manifest.read(partial.path).trace_id
        columns = {} if weight_label is None else {"weight_label": weight_label}
        _write(partial, plan, batches, workers, origin, columns, progress or (lambda _: None))
        partial.finish()
        seconds = time.monotonic() - started
    return ReplaySummary(
        path=Path(out),
        trace_id=trace_id,
        num_sequences=len(plan.sequences),
        num_tokens=Trace(out).num_rows("tokens"),
        num_unscored_tokens=plan.num_unscored_tokens,
        num_resumed_tokens=resumed,
        seconds=seconds,
        peak_bytes=max(peak_memory(), workers.peak_bytes),
    )


def _opener(cluster: Cluster | None) -> Callable[[Opening], Workers]:
    """Returns what opens a backend, here or on a cluster."""
    if cluster is None:
        return LocalWorker
    try:
        from tracekit.replay.workers.ray import RayWorkers
    except ImportError as error:
        missing = f"'{error.name}' is not installed" if isinstance(error, ModuleNotFoundError) else str(error)
        raise BackendUnavailableError(
            f"a replay cannot be spread over a cluster: {missing}; pip install 'tracekit[ray]'"
        ) from error
    return functools.partial(RayWorkers, cluster=cluster)


def _write(
    partial: PartialReplay,
    plan: Plan,
    batches: list[list[PlannedSequence]],
    workers: Workers,
    origin: Origin,
    fixed: Mapping[str, Any],
    progress: Callable[[Progress], None],
) -> None:
    """Scores what is left; each of the parent's runs becomes a run of the new trace, so that ids stay unique."""
    state = Progress(0, plan.num_output_tokens, 0, plan.num_input_tokens, 0, len(plan.sequences), 0)
    for batch in batches[: partial.num_batches]:
        state = functools.reduce(Progress.after, batch, state)
    state = dataclasses.replace(state, num_resumed_tokens=state.num_tokens)
    with partial.writer() as writer:
        if partial.num_batches == 0:
            for parent_run, run_id in partial.run_ids.items():
                writer.append("runs", runs_row(origin, workers.facts, writer.writer, run_id, parent_run))
            partial.save(writer, 0)
        progress(state)
        saved = time.monotonic()
        left = batches[partial.num_batches :]
        scored = workers.score(plan.load(left))
        for number, (batch, found) in enumerate(zip(left, scored, strict=True), partial.num_batches + 1):
            planned_of = {planned.key: planned for planned in batch}
            for rows in found:
                columns = _with_unique_steps(rows.columns, number)
                if isinstance(rows, RunRows):
                    writer.append(rows.table, {**columns, "run_id": partial.run_ids[rows.run_id]})
                else:
                    rows = dataclasses.replace(rows, columns=columns)
                    planned = planned_of[rows.sequence.run_id, rows.sequence.request_id]
                    _append(writer, rows, planned, partial.run_ids[rows.sequence.run_id], fixed)
            state = functools.reduce(Progress.after, batch, state)
            if time.monotonic() - saved >= SAVE_SECONDS:
                partial.save(writer, number)
                saved = time.monotonic()
            progress(state)


def _with_unique_steps(columns: Mapping[str, Any], batch_number: int) -> Mapping[str, Any]:
    if "step_id" not in columns:
        return columns
    return {**columns, "step_id": np.asarray(columns["step_id"]) + batch_number * _STEPS_PER_BATCH}


def _append(writer: TraceWriter, rows: Rows, planned: PlannedSequence, run_id: str, fixed: Mapping[str, Any]) -> None:
    num_rows = len(next(iter(rows.columns.values())))
    output_index = np.arange(rows.first, rows.first + num_rows, dtype=np.int32)
    keys = {
        "run_id": run_id,
        "request_id": planned.key[1],
        "output_index": output_index,
        "position": output_index + planned.num_prompt_tokens,
    }
    if rows.table != "tokens":
        writer.append(rows.table, {**rows.columns, **keys})
        return
    request = {name: [value] for name, value in rows.sequence.request.items()}
    own = {name: [value] for name, value in rows.request.items()}
    writer.append("requests", request | _OF_THE_ENGINE | own | {"run_id": run_id})
    source = "recomputed" if "processed_logprob" in rows.columns else None
    writer.append(
        "tokens", {"processed_source": source, "forced": True, **rows.columns, **fixed, **keys, "is_prompt": False}
    )
    writer.append("outcomes", _outcome(planned) | dict(rows.outcome) | {"run_id": run_id})


def _outcome(planned: PlannedSequence) -> dict[str, Any]:
    return {
        "request_id": planned.key[1],
        "finish_reason": planned.outcome.get("finish_reason"),
        "stop_reason": planned.outcome.get("stop_reason"),
        "num_output_tokens": planned.num_output_tokens,
    }


def _check_kept(name: str, backend_type: type[Backend], kept: Kept) -> None:
    for what in ("hidden", "logits"):
        if getattr(kept, what) and what not in backend_type.keeps:
            raise ConfigError(f"replay backend '{name}' does not see {what}, so it cannot keep them")


def _check_draws(name: str, backend_type: type[Backend], free: str | None, runs: Iterable[Mapping[str, Any]]) -> None:
    if free not in (None, "engine", "coupled"):
        raise ConfigError(f"free '{free}' is not known (known: engine, coupled)")
    if free is not None and free not in backend_type.draws:
        raise ConfigError(
            f"replay backend '{name}' does not sample; 'vllm' does"
            if free == "engine"
            else f"replay backend '{name}' does not see whole distributions, so it cannot draw from them"
        )
    others = {str(run.get("engine_generation") or run.get("engine")) for run in runs} - {"v2"}
    if free == "coupled" and others:
        raise ConfigError(
            f"the parent was recorded by {', '.join(sorted(others))}, whose random numbers cannot be made again; "
            "--free coupled needs a recording of Model Runner V2 (engine_generation v2)"
        )


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"{name} must be at least 1, not {value}")
