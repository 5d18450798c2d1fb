"""Chooses the adapters for the vLLM that is there, and hooks them in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import ModuleType

from tracekit.record.engines import front_end, http, v1, v2
from tracekit.record.engines.patching import when_imported

logger = logging.getLogger("tracekit")


def attach() -> None:
    """Hooks every adapter to its module; may be called again."""
    for adapter in (front_end, http, v1, v2):
        for module, patch in adapter.HOOKS.items():
            when_imported(module, _guarded(patch))


def _guarded(patch: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def patch_or_report(module: ModuleType) -> None:
        try:
            patch(module)
        except Exception as error:  # noqa: BLE001 - an engine must start whatever we fail to find in it
            logger.error("tracekit: nothing is recorded of %s, which is not as expected: %s", module.__name__, error)

    return patch_or_report
