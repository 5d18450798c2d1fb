"""The vLLM plugin: vLLM calls `register` in each of its processes, also where nothing is to be recorded."""

from __future__ import annotations

import logging
import os

_SWITCH = "TRACEKIT_RECORD"
_FILE = f"{_SWITCH}_CONFIG"

logger = logging.getLogger("tracekit")


def register() -> None:
    """Attaches the recorder where the environment asks for one; never raises, unless strict.

    An engine may also ask for one itself, in its `additional_config`: light wrappers look for that.
    """
    try:
        from tracekit.record.engines.own_settings import watch

        watch()
        if os.environ.get(_SWITCH) or os.environ.get(_FILE):
            from tracekit.record.session import attach_as_asked

            attach_as_asked()
    except Exception as error:
        if os.environ.get(f"{_SWITCH}_STRICT", "").lower() in ("1", "true"):
            raise
        logger.error("tracekit: recorder disabled, the engine goes on: %s", error)
        # The processes that this one starts would only say the same.
        os.environ.pop(_SWITCH, None)
        os.environ.pop(_FILE, None)
