"""Whether output tokens are read at once behind the prompt, or one by one with a KV cache, as they were generated."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tracekit.bisect.factors.base import Run, known_level, said

_MODES = ("decode", "prefill")


class Mode:
    title = "prefill or decode"
    backends: Collection[str] = ("hf", "llamacpp", "vllm")
    is_pinned = True

    def levels(self, runs: Sequence[Run], backend: str) -> tuple[str, ...]:  # noqa: ARG002
        # What is no replay was generated.
        recorded = said(runs, "mode") or "decode"
        return _MODES if recorded == "decode" else _MODES[::-1]

    def options(self, level: str, backend: str) -> Mapping[str, Any]:  # noqa: ARG002
        return known_level("mode", level, {mode: {"mode": mode} for mode in _MODES})


FACTOR = Mode()
