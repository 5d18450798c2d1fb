"""A plugin of vLLM's: its CPU platform leaves async scheduling as it was asked for, which it switches off otherwise."""

from __future__ import annotations

from typing import Any


def allow() -> None:
    """Is called by vLLM in each of its processes, before the engine is configured."""
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__
    if getattr(check, "allows_scheduling_ahead", False):
        return

    def check_all_but_that(cls: Any, config: Any) -> None:
        asked = config.scheduler_config.async_scheduling
        check(cls, config)
        config.scheduler_config.async_scheduling = asked

    check_all_but_that.allows_scheduling_ahead = True  # type: ignore[attr-defined]
    CpuPlatform.check_and_update_config = classmethod(check_all_but_that)
