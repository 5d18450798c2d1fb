"""Puts a function around a method of a module that may not be imported yet."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

_MARK = "_tracekit_wraps"


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replaces `owner.name` by a function that calls around(original, *args, **kwargs); once only.

    Raises:
        AttributeError: `owner` has no such function.
    """
    original = getattr(owner, name)
    if _is_wrapped(original, around):
        return

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(wrapper, _MARK, around)
    setattr(owner, name, wrapper)


def _is_wrapped(function: Any, around: Callable[..., Any]) -> bool:
    """Tells whether `around` is among the functions around it already."""
    while function is not None:
        if getattr(function, _MARK, None) is around:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def when_imported(name: str, patch: Callable[[ModuleType], None]) -> None:
    """Calls patch(module) now if the module is imported, else right after its import."""
    module = sys.modules.get(name)
    if module is not None:
        patch(module)
    else:
        sys.meta_path.insert(0, _PatchingFinder(name, patch))


class _PatchingFinder(importlib.abc.MetaPathFinder):
    """Finds one module by the other finders, and has it patched once it is executed."""

    def __init__(self, name: str, patch: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._patch = patch
        self._search = threading.local()

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:  # noqa: ARG002
        if fullname != self._name or getattr(self._search, "goes_on", False):
            return None
        self._search.goes_on = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._search.goes_on = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_then_patch(module: ModuleType) -> None:
            execute(module)
            # Not before: others may only ask whether there is such a module.
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            self._patch(module)

        spec.loader.exec_module = execute_then_patch  # type: ignore[method-assign]
        return spec
