"""The dtype of weights and activations; a head that is not asked for in another one follows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tracekit.bisect.factors.base import Run, known_level, said

_DTYPES = ("bfloat16", "float32", "float16")


class Dtype:
    title = "dtype of the model"
    backends: Collection[str] = ("hf", "vllm")
    is_pinned = True

    def levels(self, runs: Sequence[Run], backend: str) -> tuple[str, ...]:  # noqa: ARG002
        recorded = said(runs, "dtype")
        if recorded not in _DTYPES:
            return ("bfloat16", "float32")
        return (recorded, "bfloat16" if recorded == "float32" else "float32")

    def options(self, level: str, backend: str) -> Mapping[str, Any]:
        known = {
            dtype: {"dtype": dtype} if backend == "hf" else {"engine_arg": (f"dtype={dtype}",)} for dtype in _DTYPES
        }
        return known_level("dtype", level, known)

    def is_taken(self, level: str, runs: Sequence[Run]) -> bool:
        return said(runs, "dtype") in (None, level)


FACTOR = Dtype()
