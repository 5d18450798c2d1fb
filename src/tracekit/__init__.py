"""Record, replay and query LLM inference.

The public names load what they need on first use, so that importing tracekit costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tracekit.version import __version__

if TYPE_CHECKING:
    from tracekit.analysis import Session, connect
    from tracekit.cluster import Cluster
    from tracekit.record import recording, set_weight_version
    from tracekit.store import Trace, TraceWriter, create_trace
    from tracekit.trainers import TrainerTrace

__all__ = [
    "Cluster",
    "Session",
    "Trace",
    "TraceWriter",
    "TrainerTrace",
    "__version__",
    "connect",
    "create_trace",
    "recording",
    "set_weight_version",
]

_HOMES = {
    "Cluster": "tracekit.cluster",
    "Session": "tracekit.analysis",
    "Trace": "tracekit.store",
    "TraceWriter": "tracekit.store",
    "TrainerTrace": "tracekit.trainers",
    "connect": "tracekit.analysis",
    "create_trace": "tracekit.store",
    "recording": "tracekit.record",
    "set_weight_version": "tracekit.record",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tracekit' has no attribute '{name}'")
