"""The implementation of attention."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tracekit.bisect.factors.base import Run, known_level, said

_PAIR = ("sdpa", "eager")
_FUSED = {"fused": {"flash_attention": True}, "unfused": {"flash_attention": False}}


class Attention:
    """On hf what transformers calls them, on vllm what vLLM does; on llamacpp 'fused' and 'unfused'."""

    title = "attention implementation"
    backends: Collection[str] = ("hf", "llamacpp", "vllm")
    is_pinned = True

    def levels(self, runs: Sequence[Run], backend: str) -> tuple[str, ...]:
        if backend == "llamacpp":
            return tuple(_FUSED)
        recorded = said(runs, "attention_backend")
        if backend == "vllm":
            # Which others there are depends on device and release; the recording's own may not be there.
            return ()
        if said(runs, "engine") != "transformers" or recorded is None:
            return _PAIR
        return (recorded, "eager" if recorded != "eager" else "sdpa")

    def options(self, level: str, backend: str) -> Mapping[str, Any]:
        if backend == "llamacpp":
            return known_level("attention", level, _FUSED)
        return {"attention": level} if backend == "hf" else {"engine_arg": (f"attention_backend={level}",)}


FACTOR = Attention()
