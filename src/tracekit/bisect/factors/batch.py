"""How many tokens and requests are computed together."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tracekit.bisect.factors.base import Run, said
from tracekit.errors import ConfigError

_SMALL = {"batch_tokens": 256, "max_num_seqs": 4}
_OF_ENGINES: Mapping[str, Mapping[str, Any]] = {
    "recorded": {"schedule": "recorded"},
    "single": {"schedule": "single"},
    "together": {},
}


class Batch:
    """On hf and llamacpp 'large' (their own defaults), 'small', or a number of tokens.

    On vllm 'recorded' (requests arrive as they did), 'single' (one at a time), 'together' (all at once), or a number of
    requests at most (`max_num_seqs`).
    """

    title = "size of batches"
    backends: Collection[str] = ("hf", "llamacpp", "vllm")
    is_pinned = True

    def levels(self, runs: Sequence[Run], backend: str) -> tuple[str, ...]:
        if backend == "vllm":
            has_schedule = said(runs, "role") == "record" and said(runs, "num_steps") != 0
            return ("recorded" if has_schedule else "together", "single")
        given = json.loads(said(runs, "options") or "{}").get("batch_tokens")
        if said(runs, "backend") != backend or given in (None, 2048 if backend == "hf" else 512):
            return ("large", "small")
        return (str(given), "large")

    def options(self, level: str, backend: str) -> Mapping[str, Any]:
        if backend == "vllm":
            if level.isdigit() and int(level):
                return {"engine_arg": (f"max_num_seqs={level}",)}
            if level not in _OF_ENGINES:
                raise ConfigError(
                    f"factor 'batch' has no level '{level}' (known: {', '.join(_OF_ENGINES)}, or a number of requests)"
                )
            return _OF_ENGINES[level]
        if level.isdigit() and int(level):
            return {"batch_tokens": int(level)}
        if level not in ("large", "small"):
            raise ConfigError(f"factor 'batch' has no level '{level}' (known: large, small, or a number of tokens)")
        small = _SMALL if backend == "hf" else {"batch_tokens": 64}
        return small if level == "small" else {}


FACTOR = Batch()
