"""Checks that a vLLM release has what an adapter hooks and calls, before anything is hooked.

An adapter is a module or package with

    HOOKS    module of vLLM -> function that hooks it, called with the module once it is imported
    ENTRIES  module of vLLM -> class, made with the engine's VllmConfig where this adapter has work to do
    NEEDS    module of vLLM -> names in it that must be there, such as 'Runner.execute_model(scheduler_output)',
             with the first parameters that it must have; optional

What cannot be hooked is needed too. An adapter that lacks something is of no consequence until one of its entries is
made: vLLM also has parts of runners that an engine does not use.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

Patch = Callable[[ModuleType], None]


def missing_of(module: ModuleType, needs: Iterable[str]) -> list[str]:
    """Returns what a module lacks of a list of names, in words."""
    found = (_fault(module, need) for need in needs)
    return [fault for fault in found if fault is not None]


def _fault(module: ModuleType, need: str) -> str | None:
    path, _, parameters = need.partition("(")
    target: Any = module
    for name in path.split("."):
        target = getattr(target, name, None)
        if target is None:
            return f"{module.__name__}.{path}"
    wanted = [name.strip() for name in parameters.rstrip(")").split(",")] if parameters else []
    present = [name for name in inspect.signature(target).parameters if name != "self"] if wanted else []
    if present[: len(wanted)] != wanted:
        return f"{module.__name__}.{need} (its parameters are: {', '.join(present)})"
    return None


class Fitting:
    """One adapter in this process: what of it is hooked, and what it lacks.

    Attributes:
        name: the adapter's.
        missing: what this vLLM does not have of what it needs, in words.
    """

    def __init__(self, adapter: ModuleType) -> None:
        self.name = adapter.__name__.rpartition(".")[2]
        self.missing: list[str] = []
        self._needs = getattr(adapter, "NEEDS", {})

    def patch_of(self, patch: Patch) -> Patch:
        """Returns a function that checks a module and then hooks it; it never raises."""

        def check_and_patch(module: ModuleType) -> None:
            faults = missing_of(module, self._needs.get(module.__name__, ()))
            if not faults:
                try:
                    patch(module)
                except Exception as error:  # noqa: BLE001 - an engine must start whatever we fail to find in it
                    faults = [f"{module.__name__}: {error}"]
            self.missing += faults

        return check_and_patch
