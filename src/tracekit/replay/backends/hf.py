"""Scores with Hugging Face transformers in prefill mode: one forward pass over prompt and recorded tokens.

Shapes: B sequences, T positions, H hidden, N output tokens of a batch.
"""

from __future__ import annotations

import collections.abc
import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import transformers

from tracekit.errors import ConfigError, ModelError, nearest
from tracekit.replay.backends.base import ScoredRows, Sequence
from tracekit.replay.backends.split import SplitModel
from tracekit.replay.scoring import score_rows, slice_rows

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class HfOptions:
    """Options of the backend.

    Attributes:
        dtype: of weights and activations.
        head_dtype: what the last projection's operands are cast to; `dtype` by default.
        device: as torch names it; a GPU by default, where there is one.
    """

    dtype: str = "float32"
    head_dtype: str | None = None
    device: str | None = None


class HfBackend:
    """A causal language model of transformers; see `Backend` for what the methods promise."""

    options_type: ClassVar[type] = HfOptions
    mode = "prefill"

    def __init__(self, split: SplitModel, config: Any, options: HfOptions, device: torch.device) -> None:
        self._split = split
        self._config = config
        self._options = options
        self._device = device
        self.vocab_size = split.vocab_size
        self.max_num_tokens: int | None = getattr(config, "max_position_embeddings", None)

    @classmethod
    def open(cls, model: Path | None, options: HfOptions) -> Self:
        dtype = _dtype("dtype", options.dtype)
        head_dtype = _dtype("head-dtype", options.head_dtype or options.dtype)
        device = _device(options.device)
        if model is None:
            raise ConfigError("replay backend 'hf' needs a model: give --model and the folder of a checkpoint")
        if not model.is_dir():
            raise ModelError(f"{model}: no such model folder; give one with config.json and weights")
        if not (model / "config.json").is_file():
            raise ModelError(f"{model} is not a model folder: it has no config.json")
        with _quiet(), torch.inference_mode():
            loaded = _load(model, dtype).to(device).eval()
            return cls(SplitModel(loaded, head_dtype, str(model)), loaded.config.get_text_config(), options, device)

    def description(self) -> Mapping[str, Any]:
        return {
            "engine": "transformers",
            "engine_version": transformers.__version__,
            "dtype": self._options.dtype,
            "head_weight_dtype": self._options.dtype,
            "head_operand_dtype": self._options.head_dtype or self._options.dtype,
            "head_output_dtype": str(self._split.logits_dtype).removeprefix("torch."),
            "max_model_len": self.max_num_tokens,
            "prefix_caching": False,
            "chunked_prefill": False,
            "attention_backend": getattr(self._config, "_attn_implementation", None),
            "device": _device_name(self._device),
            "torch_version": torch.__version__,
        }

    def score(self, batch: collections.abc.Sequence[Sequence], top_k: int | None) -> Iterator[ScoredRows]:
        with torch.inference_mode():
            rows_NH = self._output_rows(batch)
            yield from score_rows(
                batch,
                lambda start, stop: self._split.logits(rows_NH[start:stop]),
                slice_rows(self.vocab_size),
                top_k,
            )

    def _output_rows(self, batch: collections.abc.Sequence[Sequence]) -> torch.Tensor:
        """Returns the final hidden states [N, H] at the positions that predict output tokens."""
        num_positions = max(sequence.num_input_tokens for sequence in batch)
        ids_BT = np.zeros((len(batch), num_positions), np.int64)
        mask_BT = np.zeros((len(batch), num_positions), np.int64)
        chosen_N = []
        for row, sequence in enumerate(batch):
            read = np.concatenate([sequence.prompt_ids, sequence.output_ids[:-1]])
            ids_BT[row, : len(read)] = read
            mask_BT[row, : len(read)] = 1
            first = row * num_positions + len(sequence.prompt_ids) - 1
            chosen_N.append(np.arange(first, first + len(sequence.output_ids)))
        # Padding stands on the right: no position of a causal model sees it.
        hidden_BTH = self._split.hidden(self._tensor(ids_BT), self._tensor(mask_BT))
        return hidden_BTH.flatten(0, 1)[self._tensor(np.concatenate(chosen_N))]

    def _tensor(self, values: np.ndarray[Any, np.dtype[np.int64]]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)


def _load(model: Path, dtype: torch.dtype) -> Any:
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype, local_files_only=True)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{model} cannot be loaded as a causal language model: {reason[:300]}") from error


def _dtype(option: str, name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ConfigError(f"{option} '{name}' is not known{nearest(name, DTYPES)}")
    return DTYPES[name]


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(f"device '{name}' cannot be used: {' '.join(str(error).split())[:200]}") from error
    return device


def _device_name(device: torch.device) -> str:
    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


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
