"""Records a live vLLM engine into a trace, without touching what it computes.

The names load what they need on first use: vLLM imports this package in every process, also where nothing is recorded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracekit.record.config import RecordConfig
    from tracekit.record.session import record_command, recording
    from tracekit.record.weight_labels import set_weight_version

__all__ = ["RecordConfig", "record_command", "recording", "set_weight_version"]

_HOMES = {
    "RecordConfig": "tracekit.record.config",
    "record_command": "tracekit.record.session",
    "recording": "tracekit.record.session",
    "set_weight_version": "tracekit.record.weight_labels",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tracekit.record' has no attribute '{name}'")
