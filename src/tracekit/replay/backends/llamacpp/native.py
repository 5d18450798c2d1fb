"""The calls to llama.cpp: a GGUF file as a model, and a context that reads the tokens of one sequence.

Shapes: N tokens of a call, B of them whose logits are wanted, V vocabulary, H hidden size.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.errors import ConfigError, ModelError

try:
    import llama_cpp
except (AttributeError, OSError) as error:
    # A library that is missing, or that lacks what the Python side expects of it.
    raise ImportError(f"llama-cpp-python is broken: {' '.join(str(error).split())[:200]}") from error
if not hasattr(llama_cpp, "llama_log_get"):
    raise ImportError(f"llama-cpp-python {llama_cpp.__version__} is too old; 0.3.17 or later is needed")

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]

VERSION = f"llama-cpp-python {llama_cpp.__version__}"

_LOG_LEVEL_ERROR = 4

# By the names that traces use, the numbers of ggml's types.
KV_DTYPES = {
    "float32": 0,
    "float16": 1,
    "bfloat16": 30,
    "q8_0": 8,
    "q5_1": 7,
    "q5_0": 6,
    "q4_1": 3,
    "q4_0": 2,
    "iq4_nl": 20,
}
_FILE_TYPES = {
    number: name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_")
    for name, number in vars(llama_cpp).items()
    if name.startswith("LLAMA_FTYPE_")
}


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keeps llama.cpp's messages out of a caller's terminal; gives the errors among them as they come."""
    errors: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, _: Any) -> None:
        if level == _LOG_LEVEL_ERROR:
            # Each begins with the name of a function.
            errors.append(text.decode(errors="replace").partition(": ")[2].strip())

    before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    llama_cpp.llama_log_set(keep, None)
    try:
        yield errors
    finally:
        llama_cpp.llama_log_set(before, data)


def _reason(errors: list[str]) -> str:
    return " ".join(" / ".join(filter(None, errors)).split())[:300] or "it does not say why"


class GgufModel:
    """A causal language model in a GGUF file.

    Args:
        path: the file; of a split model, the first.
        gpu_layers: how many layers a GPU computes; by default all, where this llama.cpp has a backend for one.

    Attributes:
        path: the file.
        vocab_size: V.
        hidden_size: H.
        max_num_tokens: the longest sequence that it was trained for; None where the file does not say.
        file_type: what most of its weights are stored in, as llama.cpp calls it, e.g. 'Q4_1'; None where the file
            does not say.
        on_cpu: whether no GPU takes part.

    Raises:
        ModelError: llama.cpp cannot load it, or it is of another kind.
    """

    def __init__(self, path: Path, gpu_layers: int | None) -> None:
        self.path = path
        with _quiet() as errors:
            llama_cpp.llama_backend_init()
            params = llama_cpp.llama_model_default_params()
            if gpu_layers is not None:
                params.n_gpu_layers = gpu_layers
            self.handle = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise ModelError(f"{path} cannot be loaded by llama.cpp: {_reason(errors)}")
        vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(vocab))
        self.hidden_size = int(llama_cpp.llama_model_n_embd_out(self.handle))
        self.max_num_tokens = int(llama_cpp.llama_model_n_ctx_train(self.handle)) or None
        self.file_type = self._file_type()
        self.on_cpu = gpu_layers == 0 or not llama_cpp.llama_supports_gpu_offload()
        architecture = self._metadata("general.architecture")
        if not self._is_causal(architecture):
            self.close()
            raise ModelError(f"{path} is no causal language model (its architecture is '{architecture}')")

    def close(self) -> None:
        with _quiet():
            llama_cpp.llama_model_free(self.handle)

    def _is_causal(self, architecture: str | None) -> bool:
        return not (
            llama_cpp.llama_model_has_encoder(self.handle)
            or llama_cpp.llama_model_is_diffusion(self.handle)
            or self._metadata(f"{architecture}.attention.causal") == "false"
        )

    def _file_type(self) -> str | None:
        number = self._metadata("general.file_type")
        return _FILE_TYPES.get(int(number)) if number is not None and number.isdecimal() else None

    def _metadata(self, key: str) -> str | None:
        buffer = ctypes.create_string_buffer(256)
        length = llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return None if length < 0 else buffer.value.decode(errors="replace")


@dataclass(frozen=True)
class ContextSettings:
    """How a context computes.

    Attributes:
        batch_tokens: most tokens of a call.
        num_threads: on the CPU.
        kv_dtype: one of `KV_DTYPES`.
        flash_attention: whether attention is fused; None leaves it to llama.cpp.
        hidden: whether hidden states are wanted too.
    """

    batch_tokens: int
    num_threads: int
    kv_dtype: str
    flash_attention: bool | None
    hidden: bool


class Context:
    """Reads one sequence after the other, each from its first token on, with a KV cache.

    Args:
        model: stays open as long as this.
        settings: how it computes.
        num_tokens: the longest sequence.

    Attributes:
        num_tokens: the longest sequence.

    Raises:
        ConfigError: llama.cpp cannot compute this way, or not so many tokens.
    """

    def __init__(self, model: GgufModel, settings: ContextSettings, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self._model = model
        self._settings = settings
        self._position = 0
        with _quiet() as errors:
            self._handle = llama_cpp.llama_init_from_model(model.handle, self._params())
        if not self._handle:
            raise ConfigError(
                f"{model.path}: llama.cpp cannot compute with these options, or has no memory for {num_tokens} "
                f"tokens: {_reason(errors)}"
            )
        self._batch = llama_cpp.llama_batch_init(settings.batch_tokens, 0, 1)
        shape = (settings.batch_tokens,)
        self._tokens = np.ctypeslib.as_array(self._batch.token, shape)
        self._positions = np.ctypeslib.as_array(self._batch.pos, shape)
        self._is_wanted = np.ctypeslib.as_array(self._batch.logits, shape)
        np.ctypeslib.as_array(self._batch.n_seq_id, shape)[:] = 1
        for index in range(settings.batch_tokens):
            self._batch.seq_id[index][0] = 0

    def _params(self) -> Any:
        settings, params = self._settings, llama_cpp.llama_context_default_params()
        params.n_ctx = self.num_tokens
        params.n_batch = params.n_ubatch = settings.batch_tokens
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = settings.num_threads
        params.type_k = params.type_v = KV_DTYPES[settings.kv_dtype]
        params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
        if settings.flash_attention is not None:
            params.flash_attn_type = int(settings.flash_attention)
        if self._model.on_cpu:
            params.offload_kqv = params.op_offload = False
        return params

    def begin(self) -> None:
        """Forgets the sequence that was read: what comes next is the beginning of another."""
        with _quiet():
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._handle), True)
        self._position = 0

    def read(self, token_ids_N: Int32Array, num_rows: int) -> tuple[Float32Array, Float32Array | None]:
        """Reads the next tokens of the sequence.

        Args:
            token_ids_N: int32 [N].
            num_rows: B, the last so many of them are followed by a token that is to be scored.

        Returns:
            Their logits, float32 [B, V], and where they are wanted their hidden states after the final norm,
            float32 [B, H]. Both stand in llama.cpp's own memory until the next call.

        Raises:
            ModelError: llama.cpp failed.
        """
        num_tokens = len(token_ids_N)
        self._tokens[:num_tokens] = token_ids_N
        self._positions[:num_tokens] = np.arange(self._position, self._position + num_tokens)
        # Hidden states are given of all tokens of a call, or of none.
        wants_hidden = self._settings.hidden and num_rows > 0
        self._is_wanted[:num_tokens] = wants_hidden
        self._is_wanted[num_tokens - num_rows : num_tokens] = 1
        self._batch.n_tokens = num_tokens
        with _quiet() as errors:
            if self._settings.hidden:
                llama_cpp.llama_set_embeddings(self._handle, wants_hidden)
            status = llama_cpp.llama_decode(self._handle, self._batch)
        if status != 0:
            raise ModelError(
                f"{self._model.path}: llama.cpp cannot read {num_tokens} tokens at position {self._position} "
                f"(status {status}): {_reason(errors)}"
            )
        self._position += num_tokens
        first, model = num_tokens - num_rows, self._model
        logits_BV = self._rows(llama_cpp.llama_get_logits_ith, first, num_rows, model.vocab_size)
        if not wants_hidden:
            return logits_BV, None
        return logits_BV, self._rows(llama_cpp.llama_get_embeddings_ith, first, num_rows, model.hidden_size)

    def _rows(self, getter: Any, first: int, num_rows: int, width: int) -> Float32Array:
        """Returns what stands for the tokens of the last call from `first` on; rows follow one another in memory."""
        if num_rows == 0:
            return np.empty((0, width), np.float32)
        pointer = getter(self._handle, first)
        if not pointer:
            raise ModelError(f"{self._model.path}: llama.cpp gives no rows of {width} entries ({getter.__name__})")
        return np.ctypeslib.as_array(pointer, (num_rows, width))

    def close(self) -> None:
        if self._handle:
            with _quiet():
                llama_cpp.llama_batch_free(self._batch)
                llama_cpp.llama_free(self._handle)
            self._handle = None


def system_info() -> str:
    """Returns what llama.cpp was built for."""
    text: str = llama_cpp.llama_print_system_info().decode(errors="replace")
    return " ".join(text.split())
