"""Takes bf16 products in float32 and rounds them, on processors where torch multiplies bf16 by a plain loop.

Without AVX-512 oneDNN has no bf16 product, and torch's own takes six times as long as one in float32. With this folder
on the path, linear layers in bf16 multiply in float32 and round once: what a bf16 product is, but for the order in
which it is summed. Python imports a module of this name when it starts, in each of an engine's processes.

    TRACEKIT_WIDE_PRODUCTS=1 PYTHONPATH=tools/wide_products python rollout.py
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import weakref
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_MODULE = "torch.nn.functional"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module by the other finders, and has it patched right after it is executed."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            multiply_wide(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def multiply_wide(functional: ModuleType) -> None:
    """Replaces `linear`."""
    import torch

    linear = functional.linear
    known: dict[int, tuple[weakref.ref[Any], int, Any]] = {}

    def wide(weight: Any) -> Any:
        """Returns a weight in float32, the same one as long as it does not change."""
        if not isinstance(weight, torch.nn.Parameter) or weight.is_inference():
            return weight.float()
        found = known.get(id(weight))
        if found is None or found[0]() is not weight or found[1] != weight._version:
            found = known[id(weight)] = (weakref.ref(weight), weight._version, weight.detach().float())
        return found[2]

    def wide_linear(input: Any, weight: Any, bias: Any = None) -> Any:
        if input.dtype != torch.bfloat16 or weight.dtype != torch.bfloat16 or input.device.type != "cpu":
            return linear(input, weight, bias)
        return linear(input.float(), wide(weight), None if bias is None else bias.float()).to(torch.bfloat16)

    functional.linear = wide_linear


if os.environ.get("TRACEKIT_WIDE_PRODUCTS") == "1":
    sys.meta_path.insert(0, _Finder())
