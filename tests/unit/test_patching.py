"""Functions around those of modules that are not imported yet."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tracekit.record.engines.patching import when_imported, wrap


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that is not imported yet, with a class and a function."""
    code = "class Thing:\n    def double(self, x):\n        return 2 * x\n\n\ndef triple(x):\n    return 3 * x\n"
    (tmp_path / "module_to_patch.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    finders = list(sys.meta_path)
    yield "module_to_patch"
    sys.modules.pop("module_to_patch", None)
    sys.meta_path[:] = finders


def _plus_one(original: Any, *args: Any) -> Any:
    return original(*args) + 1


def _negated(original: Any, *args: Any) -> Any:
    return -original(*args)


def test_patches_come_with_the_import_each_once(name: str) -> None:
    patched: list[tuple[str, ModuleType]] = []
    before = len(sys.meta_path)
    when_imported(name, lambda module: patched.append(("first", module)))
    when_imported(name, lambda module: patched.append(("second", module)))
    # Only asking whether there is such a module is no import of it.
    assert importlib.util.find_spec(name) is not None
    assert importlib.util.find_spec(name) is not None
    assert patched == []
    module = importlib.import_module(name)
    assert patched == [("first", module), ("second", module)]
    assert len(sys.meta_path) == before
    when_imported(name, lambda module: patched.append(("late", module)))
    assert patched[2:] == [("late", module)]


def test_a_module_that_does_not_exist(name: str) -> None:
    when_imported(f"{name}_not", lambda _: pytest.fail("there is no such module"))
    assert importlib.util.find_spec(f"{name}_not") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{name}_not")


def test_wrapping_twice_is_wrapping_once(name: str) -> None:
    module = importlib.import_module(name)
    for _ in range(2):
        wrap(module.Thing, "double", _plus_one)
        wrap(module.Thing, "double", _negated)
        wrap(module, "triple", _plus_one)
    assert module.Thing().double(5) == -11
    assert module.triple(5) == 16

    @functools.wraps(module.triple)
    def of_somebody_else(x: int) -> Any:
        return module_triple(x) * 100

    module_triple, module.triple = module.triple, of_somebody_else
    wrap(module, "triple", _plus_one)
    assert module.triple(5) == 1600
    with pytest.raises(AttributeError, match="quadruple"):
        wrap(module, "quadruple", _plus_one)
