"""Scores with a checkpoint's last projection alone, from recorded hidden states: no model is run.

A product in bf16 or fp16 is rounded otherwise where it has another number of rows, as kernels are chosen by that. So in
the dtype of the recorded hidden states each row is multiplied in a product of as many rows as its recorded batch had.

Shapes: R rows of a batch, H hidden size, V vocabulary.
"""

from __future__ import annotations

import collections.abc
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from torch import Tensor
from torch.nn import functional

from tracekit.errors import ConfigError, ModelError
from tracekit.replay.backends.base import Backend, BatchLimits, Kept, Rows, Sequence
from tracekit.replay.dtypes import DTYPES, dtype_name, named_dtype
from tracekit.replay.head import HeadDtypes, Projection
from tracekit.replay.placing import device_name, named_device
from tracekit.replay.scoring import score_rows, whole_rows

# Of logits of a recorded batch; larger ones are cut.
_PRODUCT_BYTES = 256 << 20

_HEADS = ("lm_head", "embed_out")
_WHOLE_NAMES_OF_HEADS = ("output.weight",)
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "embeddings")

# What a model does to the product, by the key of its configuration, in the dtype of the logits.
_SHAPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "final_logit_softcapping": lambda logits, cap: torch.tanh(logits / cap) * cap,
    "logit_scale": lambda logits, scale: logits * scale,
    "logits_scaling": lambda logits, scale: logits / scale,
    "lm_head_multiplier": lambda logits, scale: logits * scale,
}
_LOOKS_LIKE_A_SHAPE = re.compile(
    r"^(?!attn|attention|router).*(logit.*(scal|cap|mult)|(lm_head|output).*(scal|mult)|dim_model_base)"
)


@dataclass(frozen=True)
class HeadOptions:
    """Options of the backend.

    Attributes:
        head_dtype: what hidden states and weight are cast to before the product; by default the checkpoint's own.
        head_output_dtype: what the product is given out in; `head_dtype` by default.
        log_softmax_dtype: what logprobs are computed in; by default exact to float32 rounding.
        device: as torch names it; a GPU by default, where there is one.
        batch_tokens: rows at a time.
    """

    head_dtype: str | None = None
    head_output_dtype: str | None = None
    log_softmax_dtype: str | None = None
    device: str | None = None
    batch_tokens: int = 2048


class HeadBackend(Backend):
    """A last projection; hidden states are after the final norm, so nothing else of the model is needed."""

    options_type: ClassVar[type] = HeadOptions
    keeps: ClassVar[frozenset[str]] = frozenset(("hidden", "logits"))
    draws: ClassVar[frozenset[str]] = frozenset(("coupled",))
    mode = None

    def __init__(self, weights: _HeadWeights, options: HeadOptions, kept: Kept, device: torch.device) -> None:
        own = dtype_name(weights.weight.dtype)
        self._weight_dtype = own
        self._dtypes = HeadDtypes.named(options.head_dtype or own, options.head_output_dtype)
        log_softmax = options.log_softmax_dtype
        self._log_softmax = None if log_softmax is None else named_dtype("log-softmax-dtype", log_softmax)
        self._shapes = weights.shapes
        self._projection = Projection(weights, self._dtypes).to(device)
        self._device = device
        self._kept = kept
        self.vocab_size: int = len(weights.weight)
        self.hidden_size = weights.weight.shape[1]
        self.batch_limits = BatchLimits(num_tokens=options.batch_tokens)

    @classmethod
    def open(cls, model: Path | None, options: HeadOptions, kept: Kept) -> Self:
        if options.batch_tokens < 1:
            raise ConfigError(f"batch-tokens must be at least 1, not {options.batch_tokens}")
        device = named_device(options.device)
        if model is None:
            raise ConfigError("replay backend 'head' needs a model: give --model and the folder of a checkpoint")
        return cls(_read_head(model), options, kept, device)

    @classmethod
    def needs(cls, options: Any) -> frozenset[str]:  # noqa: ARG003
        return frozenset(("hidden", "batch_sizes"))

    def description(self) -> Mapping[str, Any]:
        return {
            "engine": "torch",
            "engine_version": torch.__version__,
            "head_weight_dtype": self._weight_dtype,
            "head_operand_dtype": dtype_name(self._dtypes.operands),
            "head_output_dtype": dtype_name(self._dtypes.output),
            "device": device_name(self._device),
            "torch_version": torch.__version__,
            "num_threads": torch.get_num_threads() if self._device.type == "cpu" else None,
        }

    def score(self, batch: collections.abc.Sequence[Sequence]) -> Iterator[Rows]:
        with torch.inference_mode():
            rows_RH = torch.cat([self._hidden(sequence) for sequence in batch])
            sizes_R = np.concatenate([self._batch_sizes(sequence) for sequence in batch])
            if self._kept.hidden:
                yield from whole_rows(batch, "hidden", rows_RH)
            yield from score_rows(
                batch,
                lambda start, stop: self._logits(rows_RH[start:stop], sizes_R[start:stop]),
                self.vocab_size,
                self._kept,
                self._log_softmax,
            )

    def _hidden(self, sequence: Sequence) -> Tensor:
        assert sequence.hidden is not None
        if sequence.hidden.shape[1] != self.hidden_size:
            raise ModelError(
                f"request '{sequence.request_id}' has hidden states of {sequence.hidden.shape[1]} entries, but the "
                f"head takes {self.hidden_size}; give the model that the trace was recorded with"
            )
        return torch.tensor(sequence.hidden, dtype=DTYPES.get(sequence.hidden_dtype), device=self._device)

    def _batch_sizes(self, sequence: Sequence) -> npt.NDArray[np.int32]:
        """Returns for each row of how many rows its product is to be, 0 where any number will do."""
        operands, output = self._dtypes.operands, self._dtypes.output
        is_narrow = operands == output and operands.itemsize < torch.float32.itemsize
        if sequence.batch_sizes is None or not is_narrow or operands != DTYPES.get(sequence.hidden_dtype):
            return np.zeros(len(sequence.output_ids), np.int32)
        return sequence.batch_sizes.clip(max=max(1, _PRODUCT_BYTES // (self.vocab_size * output.itemsize)))

    def _logits(self, rows_RH: Tensor, sizes_R: npt.NDArray[np.int32]) -> Tensor:
        sizes = np.unique(sizes_R).tolist()
        if sizes == [0]:
            logits_RV: Tensor = self._projection(rows_RH)
        else:
            logits_RV = torch.empty(len(rows_RH), self.vocab_size, dtype=self._dtypes.output, device=self._device)
            for size in sizes:
                all_places = torch.from_numpy(np.flatnonzero(sizes_R == size))
                for places in torch.split(all_places, size or len(rows_RH)):
                    rows_NH = functional.pad(rows_RH[places], (0, 0, 0, max(0, size - len(places))))
                    logits_RV[places] = self._projection(rows_NH)[: len(places)]
        for shape in self._shapes:
            logits_RV = shape(logits_RV)
        return logits_RV


@dataclass(frozen=True)
class _HeadWeights:
    weight: Tensor
    bias: Tensor | None
    shapes: list[Callable[[Tensor], Tensor]]


def _read_head(model: Path) -> _HeadWeights:
    """Reads from a checkpoint its head, and nothing else.

    Raises:
        ModelError: there is none, or something is done to logits that is not known here.
    """
    config = _read_config(model)
    files = _tensor_files(model)
    weight, bias = _find_head(model, config, files), None
    if (name := weight.removesuffix(".weight") + ".bias") in files:
        bias = _read_tensor(files[name], name)
    weight_VH = _read_tensor(files[weight], weight)
    if not weight_VH.is_floating_point():
        raise ModelError(f"{model}: its head '{weight}' is quantised ({dtype_name(weight_VH.dtype)})")
    vocab_size = min(int(config.get("vocab_size") or len(weight_VH)), len(weight_VH))
    return _HeadWeights(weight_VH[:vocab_size], None if bias is None else bias[:vocab_size], _shapes(model, config))


def _read_config(model: Path) -> dict[str, Any]:
    if not model.is_dir():
        raise ModelError(f"{model}: no such model folder; give one with config.json and weights")
    try:
        config: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{model} is not a model folder: its config.json cannot be read ({error})") from error
    # What holds the text model of a multimodal one says what the whole leaves out.
    return config | dict(config.get("text_config") or {})


def _tensor_files(model: Path) -> dict[str, Path]:
    """Returns the file of each tensor."""
    files: dict[str, Path] = {}
    for path in sorted(model.glob("*.safetensors")):
        try:
            with safetensors.safe_open(path, "pt") as opened:
                files |= dict.fromkeys(opened.keys(), path)
        except (OSError, safetensors.SafetensorError) as error:
            raise ModelError(f"{path} cannot be read as safetensors ({error})") from error
    if not files:
        raise ModelError(f"{model} has no *.safetensors; the head is read from those, so save the model in that format")
    return files


def _find_head(model: Path, config: Mapping[str, Any], files: Mapping[str, Path]) -> str:
    own = [name for name in files if name in _WHOLE_NAMES_OF_HEADS or _is_weight_of(name, _HEADS)]
    # A tied head may be stored all the same; a model that ties does not read it.
    tied = [name for name in files if _is_weight_of(name, _EMBEDDINGS)]
    candidates = (tied or own) if config.get("tie_word_embeddings", not own) else own
    if len(candidates) != 1:
        raise ModelError(f"{model}: its head is not to be told apart among {sorted(candidates) or sorted(files)[:5]}")
    return candidates[0]


def _is_weight_of(name: str, modules: tuple[str, ...]) -> bool:
    path = name.split(".")
    return len(path) > 1 and path[-1] == "weight" and path[-2] in modules


def _read_tensor(path: Path, name: str) -> Tensor:
    with safetensors.safe_open(path, "pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    return tensor


def _shapes(model: Path, config: Mapping[str, Any]) -> list[Callable[[Tensor], Tensor]]:
    found: list[Callable[[Tensor], Tensor]] = []
    for key, value in config.items():
        if key in _SHAPES and value is not None:
            found.append(lambda logits, shape=_SHAPES[key], value=float(value): shape(logits, value))  # type: ignore[misc]
        elif _LOOKS_LIKE_A_SHAPE.search(key) and isinstance(value, int | float) and not isinstance(value, bool):
            raise ModelError(
                f"{model}: what {key} = {value} does to logits is not known here; score it with the hf backend"
            )
    return found
