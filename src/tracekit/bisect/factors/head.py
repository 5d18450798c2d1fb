"""The dtype in which the last projection gives out logits: 'native' is that of the model."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tracekit.bisect.factors.base import Run, known_level, said

_NATIVE = "native"
_DTYPES = ("bfloat16", "float32", "float16")


class Head:
    title = "output of the last projection"
    backends: Collection[str] = ("hf", "head", "vllm")
    is_pinned = True

    def levels(self, runs: Sequence[Run], backend: str) -> tuple[str, ...]:
        dtype, output = said(runs, "dtype"), said(runs, "head_output_dtype")
        # The head alone knows no other dtype than its weights', which may not be the recorded output's.
        is_native = output not in _DTYPES or (backend != "head" and output == dtype)
        other = "bfloat16" if (output or dtype) == "float32" else "float32"
        return (_NATIVE if is_native else str(output), other)

    def options(self, level: str, backend: str) -> Mapping[str, Any]:
        name = "engine_arg" if backend == "vllm" else "head_output_dtype"
        known: dict[str, Mapping[str, Any]] = {
            dtype: {name: (_overrides(dtype),) if backend == "vllm" else dtype} for dtype in _DTYPES
        }
        return known_level("head", level, {_NATIVE: {}, **known})

    def is_taken(self, level: str, runs: Sequence[Run]) -> bool:
        return level == _NATIVE or said(runs, "head_output_dtype") in (None, level)


def _overrides(dtype: str) -> str:
    return f"hf_overrides={json.dumps({'head_dtype': dtype})}"


FACTOR = Head()
