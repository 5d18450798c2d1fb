"""The vLLM plugin: vLLM calls `register` in each of its processes, also where nothing is to be recorded."""

from __future__ import annotations

import logging
import os

_SWITCH = "TRACEKIT_RECORD"

logger = logging.getLogger("tracekit")


def register() -> None:
    """Attaches the recorder where the environment asks for one; never raises, unless strict."""
    if not os.environ.get(_SWITCH):
        return
    strict = os.environ.get(f"{_SWITCH}_STRICT", "").lower() in ("1", "true")
    try:
        from tracekit.record.config import RecordConfig
        from tracekit.record.engines import attach
        from tracekit.record.registry import activate, active_config

        config = RecordConfig.from_env(os.environ)
        if config is not None and active_config() is None:
            activate(config)
            attach()
    except Exception as error:
        if strict:
            raise
        logger.error("tracekit: recorder disabled, the engine goes on: %s", error)
