"""Scores with llama.cpp on a GGUF file, through llama-cpp-python: one sequence after the other, with a KV cache.

Shapes: B rows of one call of llama.cpp, T output tokens of a sequence, H hidden size, V vocabulary.
"""

from __future__ import annotations

import collections.abc
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from tracekit.errors import ConfigError, ModelError, nearest
from tracekit.fingerprint import model_fingerprint
from tracekit.replay.backends.base import Backend, Kept, Rows, Sequence
from tracekit.replay.backends.llamacpp.native import (
    KV_DTYPES,
    VERSION,
    Context,
    ContextSettings,
    Float32Array,
    GgufModel,
    system_info,
)
from tracekit.replay.scoring import score_rows, whole_rows

_MAGIC = b"GGUF"


@dataclass(frozen=True)
class LlamaCppOptions:
    """Options of the backend.

    Attributes:
        mode: 'prefill' reads prompt and output tokens at once; 'decode' reads output tokens one by one, with a KV
            cache, as an engine generates them. Either way one sequence at a time.
        batch_tokens: most tokens of a call (n_batch and n_ubatch of llama.cpp); a longer sequence is read in chunks.
        threads: on the CPU; by default as many as torch takes.
        gpu_layers: layers that a GPU computes; by default all, where llama.cpp was built for one.
        kv_dtype: of keys and values in the cache: float32, float16, bfloat16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl.
        flash_attention: whether attention is fused; llama.cpp's own choice by default.
    """

    mode: str = "prefill"
    batch_tokens: int = 512
    threads: int | None = None
    gpu_layers: int | None = None
    kv_dtype: str = "float16"
    flash_attention: bool | None = None


class LlamaCppBackend(Backend):
    """A causal language model in a GGUF file, of any quantisation."""

    options_type: ClassVar[type] = LlamaCppOptions
    keeps: ClassVar[frozenset[str]] = frozenset(("hidden", "logits"))
    draws: ClassVar[frozenset[str]] = frozenset(("coupled",))

    def __init__(self, model: GgufModel, options: LlamaCppOptions, kept: Kept) -> None:
        self._settings = ContextSettings(
            batch_tokens=options.batch_tokens,
            num_threads=options.threads or torch.get_num_threads(),
            kv_dtype=options.kv_dtype,
            flash_attention=options.flash_attention,
            hidden=kept.hidden,
        )
        self._model = model
        self._kept = kept
        self.mode = options.mode
        self.vocab_size: int = model.vocab_size
        self.max_num_tokens = model.max_num_tokens
        # A small one shows at once whether llama.cpp can compute this way.
        self._context = Context(model, self._settings, 1)

    @classmethod
    def open(cls, model: Path | None, options: LlamaCppOptions, kept: Kept) -> Self:
        _check(options)
        loaded = GgufModel(_gguf_file(model), options.gpu_layers)
        try:
            return cls(loaded, options, kept)
        except BaseException:
            loaded.close()
            raise

    def close(self) -> None:
        self._context.close()
        self._model.close()

    def description(self) -> Mapping[str, Any]:
        model, settings = self._model, self._settings
        is_float32 = model.file_type == "F32"
        attention = {None: None, True: "flash", False: "standard"}[settings.flash_attention]
        return {
            "engine": "llama.cpp",
            "engine_version": VERSION,
            "model": str(model.path),
            "model_fingerprint": model_fingerprint(model.path),
            "tokenizer": str(model.path),
            "tokenizer_hash": None,
            "chat_template_hash": None,
            "dtype": "float32" if is_float32 else None,
            "quantization": None if is_float32 else model.file_type,
            "kv_cache_dtype": settings.kv_dtype,
            "head_output_dtype": "float32",
            "max_model_len": model.max_num_tokens,
            "max_num_batched_tokens": settings.batch_tokens,
            "max_num_seqs": 1,
            "prefix_caching": False,
            "chunked_prefill": True,
            "attention_backend": attention,
            "device": "cpu" if model.on_cpu else None,
            "num_threads": settings.num_threads if model.on_cpu else None,
            "torch_version": torch.__version__,
            "engine_config": json.dumps({"system_info": system_info()}),
        }

    def score(self, batch: collections.abc.Sequence[Sequence]) -> Iterator[Rows]:
        self._make_room(max(sequence.num_input_tokens for sequence in batch))
        for sequence in batch:
            self._context.begin()
            reading = _Reading(self._context, self._settings, sequence, one_by_one=self.mode == "decode")
            for rows in score_rows([sequence], reading.logits, self.vocab_size, self._kept):
                if rows.table == "tokens" and self._kept.hidden:
                    yield from whole_rows([sequence], "hidden", torch.from_numpy(np.concatenate(reading.hidden)))
                yield rows

    def _make_room(self, num_tokens: int) -> None:
        if num_tokens > self._context.num_tokens:
            self._context.close()
            self._context = Context(self._model, self._settings, num_tokens)


class _Reading:
    """Reads a sequence, as far as its logits are asked for.

    Args:
        context: which is at its beginning.
        settings: of the context.
        sequence: what is read.
        one_by_one: whether output tokens are.

    Attributes:
        hidden: the hidden states so far, in pieces of float32 [B, H], where they are wanted.
    """

    def __init__(self, context: Context, settings: ContextSettings, sequence: Sequence, *, one_by_one: bool) -> None:
        self._context = context
        self._tokens_N = np.concatenate([sequence.prompt_ids, sequence.output_ids[:-1]])
        self._first = len(sequence.prompt_ids) - 1
        self._settings = settings
        self._one_by_one = one_by_one
        self._pieces = self._read()
        self._left_BV: Float32Array | None = None
        self.hidden: list[Float32Array] = []

    def logits(self, start: int, stop: int) -> torch.Tensor:
        """Returns the logits [stop - start, V] of rows that follow those it gave before."""
        found: list[Float32Array] = []
        missing = stop - start
        while missing:
            piece_BV = next(self._pieces) if self._left_BV is None else self._left_BV
            # A copy: the piece's memory is used again.
            found.append(piece_BV[:missing].copy())
            self._left_BV = piece_BV[missing:] if len(piece_BV) > missing else None
            missing -= len(found[-1])
        return torch.from_numpy(np.concatenate(found) if len(found) > 1 else found[0])

    def _read(self) -> Iterator[Float32Array]:
        start = 0
        while start < len(self._tokens_N):
            stop = self._stop(start)
            num_rows = max(0, stop - max(start, self._first))
            logits_BV, hidden_BH = self._context.read(self._tokens_N[start:stop], num_rows)
            if hidden_BH is not None:
                self.hidden.append(hidden_BH.copy())
            if num_rows:
                yield logits_BV
            start = stop

    def _stop(self, start: int) -> int:
        """Returns where the tokens of the next call end."""
        settings, num_prompt_tokens = self._settings, self._first + 1
        if self._one_by_one and start >= num_prompt_tokens:
            return start + 1
        whole = num_prompt_tokens if self._one_by_one else len(self._tokens_N)
        return min(start + settings.batch_tokens, whole)


def _check(options: LlamaCppOptions) -> None:
    for option, known in (("mode", ("prefill", "decode")), ("kv_dtype", KV_DTYPES)):
        if (value := getattr(options, option)) not in known:
            raise ConfigError(f"{option.replace('_', '-')} '{value}' is not known{nearest(value, known)}")
    for option, least in (("batch_tokens", 1), ("threads", 1), ("gpu_layers", 0)):
        value = getattr(options, option)
        if value is not None and value < least:
            raise ConfigError(f"{option.replace('_', '-')} must be at least {least}, not {value}")


def _gguf_file(model: Path | None) -> Path:
    """Returns the file that is meant.

    Raises:
        ConfigError, ModelError: none is.
    """
    if model is None:
        raise ConfigError("replay backend 'llamacpp' needs a model: give --model and a .gguf file")
    if model.is_dir():
        found = sorted(model.glob("*.gguf"))
        if not found:
            raise ModelError(f"{model} holds no .gguf file; make one of the checkpoint with llama.cpp's converter")
        if len(found) > 1:
            raise ModelError(f"{model} holds {len(found)} .gguf files; name one of them (of a split model, the first)")
        return _gguf_file(found[0])
    try:
        with model.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise ModelError(f"{model} cannot be read ({error.strerror}); give a .gguf file") from error
    if magic != _MAGIC:
        raise ModelError(f"{model} is no GGUF file: it begins with {magic!r}, not {_MAGIC!r}")
    return model
