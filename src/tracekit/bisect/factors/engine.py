"""The software: releases of vLLM, each by its interpreter, or another backend."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tracekit.bisect.factors.base import Run
from tracekit.errors import ConfigError

_BACKENDS = ("hf", "llamacpp", "vllm")


class Engine:
    """A level is the path of an interpreter that has vLLM and tracekit, or the name of a backend."""

    title = "engine"
    backends: Collection[str] = _BACKENDS
    is_pinned = True

    def levels(self, runs: Sequence[Run], backend: str) -> tuple[str, ...]:  # noqa: ARG002
        # Where engines are installed is known to the user alone.
        return ()

    def options(self, level: str, backend: str) -> Mapping[str, Any]:  # noqa: ARG002
        if level in _BACKENDS:
            return {"backend": level}
        if "/" not in level:
            raise ConfigError(
                f"factor 'engine' has no level '{level}': give the path of an interpreter that has vLLM and tracekit, "
                f"or one of {', '.join(_BACKENDS)}"
            )
        return {"backend": "vllm", "python": level}


FACTOR = Engine()
