"""Scores with Hugging Face transformers: prompt and recorded tokens at once, or token by token with a KV cache.

Shapes: R rows that predict the output tokens of a batch, H hidden size, V vocabulary.
"""

from __future__ import annotations

import collections.abc
import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import transformers

from tracekit.errors import ConfigError, ModelError, nearest
from tracekit.fingerprint import adapter_fingerprint, model_fingerprint
from tracekit.replay.backends.base import Backend, BatchLimits, Kept, Rows, Sequence
from tracekit.replay.backends.hf.adapters import Adapters
from tracekit.replay.backends.hf.pieces import PassLimits, predicting_rows
from tracekit.replay.backends.hf.readers import reader_of
from tracekit.replay.backends.hf.split import SplitModel
from tracekit.replay.backends.hf.weights import RecordedSchedule, with_weights
from tracekit.replay.checkpoints import named_adapters, named_checkpoints
from tracekit.replay.dtypes import dtype_name, named_dtype
from tracekit.replay.head import HeadDtypes
from tracekit.replay.placing import device_name, named_device
from tracekit.replay.scoring import score_rows, whole_rows

# Sequences of a planned batch for each that is decoded at a time: so many are waiting when one ends.
_REFILLS = 8
# The rows of a batch are held until all of them are there: at most so many bytes of hidden states.
_HELD_BYTES = 512 << 20


@dataclass(frozen=True)
class HfOptions:
    """Options of the backend.

    Attributes:
        mode: 'prefill' reads prompt and output tokens at once; 'decode' reads output tokens one by one, with a KV
            cache, as an engine generates them.
        dtype: of weights and activations.
        head_dtype: what the last projection's operands are cast to; `dtype` by default.
        head_output_dtype: what the last projection gives out; `head_dtype` by default.
        attention: the implementation, as transformers names it; its own choice by default.
        autocast: run the model under torch.autocast of this dtype.
        log_softmax_dtype: what logprobs are computed in; by default exact to float32 rounding.
        device: as torch names it; a GPU by default, where there is one.
        batch_tokens: most tokens of a forward pass; a longer sequence is read in chunks.
        max_num_seqs: in decode mode, sequences at a time.
        weights: checkpoints by label or version, each as 'LABEL=PATH', for `weights_schedule`.
        weights_schedule: 'recorded' scores each token under the weights that it was sampled under; in decode mode.
        kv: what happens to the KV cache then: 'keep', as by default, or 'clear'.
        lora: adapters by the name that requests call them, each as 'NAME=PATH', or 'NAME=base' for none.
    """

    mode: str = "prefill"
    dtype: str = "float32"
    head_dtype: str | None = None
    head_output_dtype: str | None = None
    attention: str | None = None
    autocast: str | None = None
    log_softmax_dtype: str | None = None
    device: str | None = None
    batch_tokens: int = 2048
    max_num_seqs: int = 32
    weights: tuple[str, ...] = ()
    weights_schedule: str | None = None
    kv: str | None = None
    lora: tuple[str, ...] = ()


class HfBackend(Backend):
    """A causal language model of transformers."""

    options_type: ClassVar[type] = HfOptions
    keeps: ClassVar[frozenset[str]] = frozenset(("hidden", "logits"))
    draws: ClassVar[frozenset[str]] = frozenset(("coupled",))

    def __init__(
        self,
        split: SplitModel,
        config: Any,
        options: HfOptions,
        kept: Kept,
        device: torch.device,
        schedule: RecordedSchedule | None,
        adapters: Adapters,
    ) -> None:
        self._split = split
        self._schedule = schedule
        self._adapters = adapters
        self._config = config
        self._options = options
        self._kept = kept
        self._device = device
        self._attention = getattr(config, "_attn_implementation", None)
        self._reader = reader_of(split.body, options.batch_tokens)
        decode = options.mode == "decode"
        self._limits = PassLimits(options.batch_tokens, options.max_num_seqs, decode)
        self.mode = options.mode
        self.vocab_size = split.vocab_size
        self.max_num_tokens = getattr(config, "max_position_embeddings", None)
        self.adapters = adapters.names
        refills = _REFILLS if schedule is None else 1
        self.batch_limits = (
            BatchLimits(num_tokens=_HELD_BYTES // (4 * split.hidden_size), num_sequences=options.max_num_seqs * refills)
            if decode
            else BatchLimits(num_tokens=options.batch_tokens)
        )

    @classmethod
    def needs(cls, options: HfOptions) -> frozenset[str]:
        return frozenset() if options.weights_schedule is None else frozenset(("weights",))

    @classmethod
    def named_model(cls, model: Path | None, options: HfOptions) -> Path | None:
        if not options.weights:
            return model
        if options.weights_schedule is None:
            raise ConfigError("weights are for a schedule of them; without weights-schedule, give each as the model")
        if model is not None:
            raise ConfigError("model and weights both name the model; leave the model out")
        return next(iter(named_checkpoints(options.weights).values()))

    @classmethod
    def described(cls, options: HfOptions) -> dict[str, Any]:
        weights, adapters = named_checkpoints(options.weights), named_adapters(options.lora)
        found = {f"weights {label}": model_fingerprint(path) for label, path in weights.items()}
        found |= {f"lora {name}": adapter_fingerprint(path) for name, path in adapters.items() if path is not None}
        return super().described(options) | {"fingerprints": found}

    @classmethod
    def open(cls, model: Path | None, options: HfOptions, kept: Kept) -> Self:
        _check(options)
        if model is None:
            raise ConfigError("replay backend 'hf' needs a model: give --model and the folder of a checkpoint")
        dtype = named_dtype("dtype", options.dtype)
        native = named_dtype("autocast", options.autocast or options.dtype)
        head = _head_dtypes(options)
        device = named_device(options.device)
        adapters = named_adapters(options.lora)

        def load(folder: Path) -> Any:
            with _quiet():
                return _load(folder, dtype, options.attention).to(device).eval()

        with torch.inference_mode():
            loaded = load(model)
            with _quiet():
                attached = Adapters(loaded, adapters)
            split = SplitModel(loaded, None if head == HeadDtypes(native, native) else head, str(model))
            schedule = None
            if options.weights_schedule is not None:
                checkpoints = named_checkpoints(options.weights)
                schedule = RecordedSchedule(split, checkpoints, load, clears=options.kv == "clear")
            return cls(split, loaded.config.get_text_config(), options, kept, device, schedule, attached)

    def description(self) -> Mapping[str, Any]:
        options = self._options
        with torch.inference_mode(), self._autocast():
            logits_dtype = self._split.logits_dtype
        return {
            "engine": "transformers",
            "engine_version": transformers.__version__,
            "dtype": options.dtype,
            "head_weight_dtype": options.dtype,
            "head_operand_dtype": dtype_name(_head_dtypes(options).operands),
            "head_output_dtype": dtype_name(logits_dtype),
            "max_model_len": self.max_num_tokens,
            "prefix_caching": False,
            "chunked_prefill": False,
            "attention_backend": self._attention,
            "device": device_name(self._device),
            "torch_version": torch.__version__,
            "num_threads": torch.get_num_threads() if self._device.type == "cpu" else None,
        }

    def score(self, batch: collections.abc.Sequence[Sequence]) -> Iterator[Rows]:
        with torch.inference_mode(), self._autocast():
            if self._schedule is not None:
                self._schedule.begin()
            rows_RH = self._adapters.rows(batch, self._rows)
            if self._kept.hidden:
                yield from whole_rows(batch, "hidden", rows_RH)
            log_softmax = self._options.log_softmax_dtype
            scored = score_rows(
                batch,
                self._logits_of(batch, rows_RH),
                self._split.vocab_size,
                self._kept,
                None if log_softmax is None else named_dtype("log-softmax-dtype", log_softmax),
            )
            for rows in scored:
                yield (
                    rows
                    if rows.table != "tokens"
                    else self._adapters.told(with_weights(rows, clears=self._options.kv == "clear"))
                )

    def _rows(self, batch: collections.abc.Sequence[Sequence]) -> torch.Tensor:
        return predicting_rows(batch, self._reader, self._limits, self._schedule)

    def _logits_of(
        self, batch: collections.abc.Sequence[Sequence], rows_RH: torch.Tensor
    ) -> Callable[[int, int], torch.Tensor]:
        schedule = self._schedule
        if schedule is None:
            return self._adapters.logits_of(batch, rows_RH, self._split)
        weights_R = np.concatenate([schedule.of(sequence) for sequence in batch])
        return lambda start, stop: schedule.logits(rows_RH[start:stop], weights_R[start:stop])

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._options.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, named_dtype("autocast", self._options.autocast))


def _check(options: HfOptions) -> None:
    choices = {"mode": ("prefill", "decode"), "weights_schedule": (None, "recorded"), "kv": (None, "keep", "clear")}
    for option, known in choices.items():
        if (value := getattr(options, option)) not in known:
            names = [name for name in known if name is not None]
            raise ConfigError(f"{option.replace('_', '-')} '{value}' is not known{nearest(str(value), names)}")
    for option in ("autocast", "log_softmax_dtype"):
        if (name := getattr(options, option)) is not None:
            named_dtype(option.replace("_", "-"), name)
    for option in ("batch_tokens", "max_num_seqs"):
        if (number := getattr(options, option)) < 1:
            raise ConfigError(f"{option.replace('_', '-')} must be at least 1, not {number}")
    if options.weights_schedule is None and options.kv is not None:
        raise ConfigError(f"kv '{options.kv}' is for changes of weights: give --weights-schedule recorded with it")
    if options.weights_schedule is not None:
        if options.mode != "decode":
            raise ConfigError("weights-schedule 'recorded' needs --mode decode: weights change between two tokens")
        if not options.weights:
            raise ConfigError(
                "weights-schedule 'recorded' needs the checkpoints: --weights LABEL=PATH for each version"
            )
        if options.lora:
            raise ConfigError("lora and weights-schedule cannot be combined: adapters are of one base model")


def _head_dtypes(options: HfOptions) -> HeadDtypes:
    return HeadDtypes.named(options.head_dtype or options.autocast or options.dtype, options.head_output_dtype)


def _load(model: Path, dtype: torch.dtype, attention: str | None) -> Any:
    if not model.is_dir():
        raise ModelError(f"{model}: no such model folder; give one with config.json and weights")
    if not (model / "config.json").is_file():
        raise ModelError(f"{model} is not a model folder: it has no config.json")
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, attn_implementation=attention, local_files_only=True
        )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{model} cannot be loaded as a causal language model: {reason[:300]}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps progress bars and advice of transformers out of a caller's terminal while a model loads."""
    log: Any = transformers.utils.logging
    verbosity, had_progress = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(verbosity)
        if had_progress:
            log.enable_progress_bar()
