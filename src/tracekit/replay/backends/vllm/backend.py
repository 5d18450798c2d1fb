"""Scores with a vLLM of any release: the recorded tokens are given to it, and its own recorder tells what it found.

Shapes: T output tokens of a sequence, K candidates of the parent.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import pyarrow as pa

from tracekit.errors import BackendUnavailableError, ConfigError, ModelError
from tracekit.fingerprint import adapter_fingerprint
from tracekit.replay.backends.base import DEFAULT_TOP_K, Backend, BatchLimits, Kept, Rows, RunRows, Sequence
from tracekit.replay.backends.vllm.options import ARGUMENTS, VllmOptions, recorded_engine, recorded_top_k
from tracekit.replay.backends.vllm.process import EngineProcess
from tracekit.replay.backends.vllm.scratch import Expected, ScratchTrace
from tracekit.replay.checkpoints import named_adapters
from tracekit.schema import table

_PLUGIN = "tracekit"
_ALLOW_LIST = "VLLM_PLUGINS"
_FORCED = "tracekit_forced"

# The ranks of data parallelism count their steps apart.
_STEPS_PER_RANK = 1 << 40

# Arguments of SamplingParams that are columns of `requests`, beside those that end a request.
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "allowed_token_ids",
)

# What the engine's own recorder says and the new trace does not: identities, and what only that recording knows.
_NOT_OF_RUNS = frozenset(
    (
        *("run_id", "writer", "role", "process", "process_id", "hostname", "started_ns", "tracekit_version"),
        *("model", "model_fingerprint", "tokenizer", "tokenizer_hash", "chat_template_hash"),
        *("disabled_reason", "capture_config", "backend", "mode", "options"),
    )
)
_NOT_OF_TOKENS = frozenset(
    (
        *("run_id", "request_id", "output_index", "position", "is_prompt", "draft_index", "reported_logprob"),
        *("weight_version", "weight_label", "weights_partial", "kv_weight_version_min"),
        *("policy", "trainer_step", "loss_mask", "advantage", "parent_top_logits"),
    )
)
_NOT_OF_STEPS = frozenset(("run_id", "weight_version", "weight_label"))
_PROCESSED = ("processed_logprob", "kept_count", "kept_mass", "processed_source")


class VllmBackend(Backend):
    """A vLLM in a process of its own."""

    options_type: ClassVar[type] = VllmOptions
    keeps: ClassVar[frozenset[str]] = frozenset(("hidden", "logits"))
    draws: ClassVar[frozenset[str]] = frozenset(("engine", "coupled"))
    in_process: ClassVar[bool] = False

    def __init__(self, process: EngineProcess, scratch: ScratchTrace, folder: Path, options: VllmOptions) -> None:
        self._process = process
        self._scratch = scratch
        self._folder = folder
        self._options = options
        self._num_batches = 0
        self._run: dict[str, Any] = {}
        self._is_native = False
        self._kept = Kept()
        self.mode = options.mode
        self._adapters = named_adapters(options.lora)
        self.adapters = frozenset(self._adapters)
        is_whole = options.schedule == "recorded"
        self.batch_limits = BatchLimits(None if is_whole else options.batch_tokens, of_one_run=True)

    @classmethod
    def needs(cls, options: VllmOptions) -> frozenset[str]:
        return frozenset(("steps",) if options.schedule == "recorded" else ())

    @classmethod
    def completed(cls, options: VllmOptions, runs: collections.abc.Sequence[Mapping[str, Any]]) -> VllmOptions:
        recorded = recorded_engine(runs) | {"top_k": recorded_top_k(runs)}
        return dataclasses.replace(options, recorded=recorded)

    @classmethod
    def described(cls, options: VllmOptions) -> dict[str, Any]:
        shown = dataclasses.asdict(dataclasses.replace(options, env=tuple(options.without_secrets())))
        shown.pop("recorded")
        adapters = {name: folder for name, folder in named_adapters(options.lora).items() if folder is not None}
        return shown | {"fingerprints": {name: adapter_fingerprint(folder) for name, folder in adapters.items()}}

    @classmethod
    def open(cls, model: Path | None, options: VllmOptions, kept: Kept) -> Self:
        options.check()
        if kept.free is not None and (options.mode, options.schedule) != ("decode", None):
            raise ConfigError("--free samples anew: it goes with --mode decode, and without --schedule")
        if model is None:
            raise ConfigError("replay backend 'vllm' needs a model: give --model, a folder or a name that vLLM takes")
        _check_model(model)
        folder = Path(tempfile.mkdtemp(prefix="tracekit-vllm-"))
        environment = _environment(options, folder / "trace", kept)
        try:
            process = EngineProcess(options.python, environment, folder / "engine.log")
        except ConfigError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        backend = cls(process, ScratchTrace(folder / "trace"), folder, options)
        try:
            backend._start(str(model), kept)
        except BaseException as error:
            # The message may name the log.
            backend._end(keeps_log=str(folder) in str(error))
            raise
        return backend

    def _start(self, model: str, kept: Kept) -> None:
        options = self._options
        start = {
            "model": model,
            "arguments": options.engine_arguments(),
            "recorded": options.recorded,
            "mode": options.mode if kept.free is None else "free",
        }
        told = self._process.ask({"start": start})
        self._is_native = told["is_native"]
        self._kept = kept
        # The recorder tells of an engine when it sees its first request.
        warm_up = {"id": "warm-up", "name": "warm-up", "prompt_token_ids": [1], "steps": [], "lora": None}
        self._ask([warm_up | {"sampling": {"max_tokens": 1}}], None)
        self._run = self._scratch.run()
        _check_switches(options.engine_arguments(), self._run)
        self.vocab_size = self._run["vocab_size"]
        if (max_model_len := self._run.get("max_model_len")) is not None:
            # One more is predicted than read, and another one is sampled behind a prompt.
            self.max_num_tokens = max_model_len - (1 if options.mode == "decode" else 2)

    def close(self) -> None:
        self._end(keeps_log=False)

    def _end(self, *, keeps_log: bool) -> None:
        self._process.close()
        if keeps_log:
            shutil.rmtree(self._folder / "trace", ignore_errors=True)
        else:
            shutil.rmtree(self._folder, ignore_errors=True)

    def description(self) -> Mapping[str, Any]:
        known = {name: value for name, value in self._run.items() if name not in _NOT_OF_RUNS and value is not None}
        if self.mode == "prefill":
            # Whatever the engine's setting: prompts whose logprobs are asked for are computed anew.
            known["prefix_caching"] = False
        return known

    def score(self, batch: collections.abc.Sequence[Sequence]) -> Iterator[Rows | RunRows]:
        self._num_batches += 1
        given = {f"{self._num_batches}-{index}": sequence for index, sequence in enumerate(batch)}
        in_order = sorted(given.items(), key=lambda item: item[1].arrival)
        requests = [self._request(id_, sequence) for id_, sequence in in_order]
        ended: dict[str, dict[str, Any]] = {}
        for of_one_rank in _by_rank(requests) if self._options.schedule == "recorded" else [requests]:
            ended |= self._ask(of_one_rank, self._options.schedule)
        is_free = self._kept.free is not None
        if self.mode == "decode" and not is_free:
            self._check_tokens(given, ended)
        expected = {
            id_: Expected(len(of.prompt_ids), len(ended[id_]["token_ids"] if is_free else of.output_ids))
            for id_, of in given.items()
        }
        also = tuple(name for name in ("hidden", "logits") if getattr(self._kept, name))
        found = self._scratch.collect(expected, also)
        steps = found.steps()
        first_step = steps[0]["step_id"]
        yield _steps_of(batch[0].run_id, steps, first_step, {id_: of.request_id for id_, of in given.items()})
        of_requests = found.requests()
        for (id_, sequence), tokens in zip(given.items(), found.tokens(list(given)), strict=True):
            for name in also:
                for first, values, dtypes in found.whole_rows(name, id_):
                    yield Rows(sequence, {name: values, "source_dtype": dtypes}, name, first)
            own = of_requests[id_]
            did = {"lora": own.get("lora"), "lora_version": None}
            if self.mode == "decode":
                did |= {name: own.get(name) for name in ("num_cached_tokens", "num_external_cached_tokens")}
            columns = self._columns(sequence, tokens, first_step)
            yield Rows(sequence, columns, request=did, outcome=_outcome(ended[id_]) if is_free else {})
        self._scratch.forget()

    def _ask(self, requests: list[dict[str, Any]], schedule: str | None) -> dict[str, dict[str, Any]]:
        answer = self._process.ask({"run": {"requests": requests, "schedule": schedule}})
        self.peak_bytes = max(self.peak_bytes, answer["peak_bytes"])
        ended: dict[str, dict[str, Any]] = answer["ended"]
        return ended

    def _request(self, id_: str, sequence: Sequence) -> dict[str, Any]:
        prompt_ids, output_ids = sequence.prompt_ids.tolist(), sequence.output_ids.tolist()
        candidates = sequence.candidate_ids
        forced: dict[str, Any] = {"num_prompt_tokens": len(prompt_ids), "token_ids": []}
        if self._kept.free == "coupled" and sequence.draw_is_known:
            forced["draw"] = -1 if sequence.is_greedy else sequence.request["seed"]
        if self._kept.free is None:
            forced["token_ids"] = output_ids
            if candidates is not None:
                forced["candidate_ids"] = [row[row >= 0].tolist() for row in candidates]
        sampling = _free_sampling_of(sequence) if self._kept.free else _sampling_of(sequence)
        sampling["extra_args"] = {_FORCED: forced}
        if self.mode == "prefill":
            prompt_ids = prompt_ids + output_ids
            sampling |= {"max_tokens": 1, "min_tokens": 0, "prompt_logprobs": 0}
        elif self._kept.free is None:
            sampling["max_tokens"] = len(output_ids)
        return {
            "id": id_,
            "name": sequence.request_id,
            "prompt_token_ids": prompt_ids,
            "sampling": sampling,
            "steps": [] if sequence.steps is None else sequence.steps.tolist(),
            "lora": self._adapter(sequence),
        }

    def _adapter(self, sequence: Sequence) -> dict[str, Any] | None:
        """Returns the adapter of a request, as the engine is told of it."""
        name = sequence.request.get("lora")
        folder = None if name is None else self._adapters[name]
        if name is None or folder is None:
            return None
        return {"name": name, "id": 1 + list(self._adapters).index(name), "path": str(folder.absolute())}

    def _check_tokens(self, given: Mapping[str, Sequence], ended: Mapping[str, Mapping[str, Any]]) -> None:
        for id_, sequence in given.items():
            if ended[id_]["token_ids"] != sequence.output_ids.tolist():
                raise BackendUnavailableError(
                    f"{self._process.python} did not sample the tokens that it was given for request "
                    f"'{sequence.request_id}'; is the tracekit that is installed there of this release?"
                )

    def _columns(self, sequence: Sequence, tokens: pa.Table, first_step: int) -> dict[str, Any]:
        columns: dict[str, Any] = {
            name: tokens.column(name) for name in tokens.column_names if name not in _NOT_OF_TOKENS
        }
        columns["step_id"] = tokens.column("step_id").to_numpy() - first_step
        if not self._shapes_as_recorded(sequence):
            columns |= dict.fromkeys(_PROCESSED)
        if self._kept.free is None:
            lists = tokens.column("parent_top_logits")
            columns["parent_top_logits"] = _parent_top_logits(lists, sequence.candidate_ids)
        return columns

    def _shapes_as_recorded(self, sequence: Sequence) -> bool:
        """Whether the engine processes logits as the recorded parameters say."""
        request = sequence.request
        # Model Runner V2's own replay masks neither stop tokens nor bad words; behind a prompt no stop tokens are.
        ignores_min_tokens = self._is_native or self.mode == "prefill"
        if ignores_min_tokens and request.get("min_tokens"):
            return False
        if self._is_native and json.loads(request.get("bad_words_token_ids") or "[]"):
            return False
        return sequence.sampling_is_known


def _check_model(model: Path) -> None:
    """Refuses what is neither a model's folder nor the name of one, which the engine would tell at length.

    Raises:
        ModelError: it is not.
    """
    # Names on a hub have at most two parts.
    if not model.exists() and (model.is_absolute() or len(model.parts) > 2):
        raise ModelError(f"{model}: no such model folder; give one with config.json and weights")
    # Mistral's own format has params.json.
    if model.is_dir() and not any((model / name).is_file() for name in ("config.json", "params.json")):
        raise ModelError(f"{model} is not a model folder: it has no config.json")


def _check_switches(arguments: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Refuses what the engine was given and did not take: figures would be of another setting than their name.

    Raises:
        ConfigError: a switch stands otherwise.
    """
    for name, value in arguments.items():
        found = run.get(ARGUMENTS.get(name, ""))
        if isinstance(value, bool) and found is not None and found != value:
            raise ConfigError(
                f"the engine was given {name}={json.dumps(value)}, and runs with {json.dumps(found)}: it leaves no "
                "choice for this model or device"
            )


def _environment(options: VllmOptions, trace: Path, kept: Kept) -> dict[str, str]:
    """Returns the variables of the engine's process: those of this one, the user's, and the recorder's."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRACEKIT_RECORD")}
    # In one process, requests arrive exactly between two steps.
    environment.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if (num_threads := options.recorded.get("num_threads")) is not None:
        # On a CPU sums are rounded otherwise where more threads share them.
        environment["OMP_NUM_THREADS"] = str(num_threads)
    environment |= options.environment()
    allowed = environment.get(_ALLOW_LIST)
    if allowed is not None and _PLUGIN not in allowed.split(","):
        environment[_ALLOW_LIST] = f"{allowed},{_PLUGIN}"
    top_k = kept.top_k or options.recorded.get("top_k") or DEFAULT_TOP_K
    return environment | {
        "TRACEKIT_FORCE_TOKENS": "1",
        "TRACEKIT_RECORD": str(trace),
        "TRACEKIT_RECORD_TOP_K": str(top_k),
        "TRACEKIT_RECORD_HIDDEN": json.dumps(kept.hidden),
        "TRACEKIT_RECORD_LOGITS": json.dumps(kept.logits),
        "TRACEKIT_RECORD_FLUSH_SECONDS": "0.2",
        "TRACEKIT_RECORD_MAX_QUEUE_MIB": "8192",
        "TRACEKIT_RECORD_STRICT": "true",
    }


def _outcome(ended: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "finish_reason": ended["finish_reason"],
        "stop_reason": ended["stop_reason"],
        "num_output_tokens": len(ended["token_ids"]),
    }


def _free_sampling_of(sequence: Sequence) -> dict[str, Any]:
    """Returns all recorded parameters, those that end a request and the seed included."""
    row = sequence.request
    sampling = _shaping(row)
    for name in ("seed", "ignore_eos", "min_tokens", "stop_token_ids"):
        if row.get(name) is not None:
            sampling[name] = row[name]
    if row.get("stop"):
        sampling["stop"] = row["stop"]
    else:
        sampling["detokenize"] = False
    return {**sampling, "max_tokens": row.get("max_tokens") or len(sequence.output_ids)}


def _sampling_of(sequence: Sequence) -> dict[str, Any]:
    """Returns the recorded parameters that shape the distribution; nothing ends a request but its length."""
    row = sequence.request
    sampling = _shaping(row)
    if row.get("min_tokens"):
        # These are what it masks; a recorded one stands at the end, if anywhere.
        sampling["stop_token_ids"] = row.get("stop_token_ids")
        sampling["min_tokens"] = min(row["min_tokens"], len(sequence.output_ids))
    return {**sampling, "ignore_eos": True, "detokenize": False}


def _shaping(row: Mapping[str, Any]) -> dict[str, Any]:
    sampling = {name: row[name] for name in _SAMPLING if row.get(name) is not None}
    if sampling.get("top_k") == 0:
        sampling["top_k"] = -1  # what every release takes for "all"
    if row.get("logit_bias") is not None:
        sampling["logit_bias"] = json.loads(row["logit_bias"])
    bad_words = json.loads(row.get("sampling_params") or "{}").get("bad_words")
    if bad_words:
        sampling["bad_words"] = bad_words
    return sampling


def _by_rank(requests: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    ranks: dict[int, list[dict[str, Any]]] = {}
    for request in requests:
        ranks.setdefault(request["steps"][0] // _STEPS_PER_RANK if request["steps"] else 0, []).append(request)
    return [ranks[rank] for rank in sorted(ranks)]


def _steps_of(run_id: str, steps: list[dict[str, Any]], first_step: int, recorded_ids: Mapping[str, str]) -> RunRows:
    names = [column.name for column in table("steps").columns if column.name not in _NOT_OF_STEPS]
    columns: dict[str, Any] = {name: [row[name] for row in steps] for name in names}
    columns["step_id"] = [step - first_step for step in columns["step_id"]]
    columns["request_ids"] = [[recorded_ids.get(id_, id_) for id_ in ids] for ids in columns["request_ids"]]
    return RunRows(run_id, columns, "steps")


def _parent_top_logits(lists: pa.ChunkedArray, candidate_ids: Any) -> Any:
    if candidate_ids is None:
        return None
    counts = (candidate_ids >= 0).sum(1).tolist()
    rows = lists.to_pylist()
    return [None if row is None or not count else row[:count] for row, count in zip(rows, counts, strict=True)]
