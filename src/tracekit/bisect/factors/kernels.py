"""vLLM's own kernels for norms, activations and rotary embeddings, or what torch does instead."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tracekit.bisect.factors.base import Run, known_level

_NATIVE = f"compilation_config={json.dumps({'custom_ops': ['none']})}"
_LEVELS: Mapping[str, Mapping[str, Any]] = {"default": {}, "native": {"engine_arg": (_NATIVE,)}}


class Kernels:
    """'default' is the engine's own choice, 'native' torch's operations throughout."""

    title = "kernels of single operations"
    backends: Collection[str] = ("vllm",)
    is_pinned = False

    def levels(self, runs: Sequence[Run], backend: str) -> tuple[str, ...]:  # noqa: ARG002
        return ("default", "native")

    def options(self, level: str, backend: str) -> Mapping[str, Any]:  # noqa: ARG002
        return known_level("kernels", level, _LEVELS)


FACTOR = Kernels()
