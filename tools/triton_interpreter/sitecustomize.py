"""Lets vLLM's Model Runner V2 run where there is no GPU, for tests: its Triton kernels are interpreted, slowly.

On a CPU vLLM falls back to the V1 model runner, since Triton offers no backend there. With this folder on the path
Triton counts one, whose kernels its own interpreter runs on CPU tensors:

    TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 PYTHONPATH=tools/triton_interpreter python rollout.py

Python imports a module of this name when it starts, in each of vLLM's processes. Without TRITON_INTERPRET=1 it does
nothing.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

Patch = Callable[[ModuleType], None]


class PatchingFinder(importlib.abc.MetaPathFinder):
    """Finds the named modules by the other finders, and has each patched right after it is executed."""

    def __init__(self, patches: dict[str, Patch]) -> None:
        self._patches = patches

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        patch = self._patches.pop(name, None)
        if patch is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            patch(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def add_cpu_backend(backends: ModuleType) -> None:
    """Adds a backend that is there; the interpreter never asks for its compiler."""

    class Driver:
        @staticmethod
        def is_active() -> bool:
            return True

    backends.backends["cpu"] = backends.Backend(compiler=None, driver=Driver)


def truncate_by_torch(sampler: ModuleType) -> None:
    """Has top-k and top-p done by torch: the interpreter cannot run their kernel's loops over `tl.range`."""
    sampler.HAS_TRITON = False


def mask_by_torch(structured_outputs: ModuleType) -> None:
    """Has a grammar's mask applied by torch: the interpreter makes an integer of the kernel's boolean mask."""
    structured_outputs._apply_grammar_bitmask_kernel = GrammarMask()


class GrammarMask:
    """The kernel `_apply_grammar_bitmask_kernel`, called as it is: kernel[grid](...)."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self.apply

    def apply(self, *arguments: Any, MASK_STRIDE: int, BLOCK_SIZE: int) -> None:  # noqa: ARG002
        import torch

        logits, _, mapping, cu_num_logits, bitmask, _, vocab_size = arguments
        shifts = torch.arange(32, dtype=torch.int32)
        allowed = (bitmask.unsqueeze(-1) >> shifts & 1).bool().flatten(1)[:, :vocab_size]
        for entry, row_allowed in zip(mapping.tolist(), allowed, strict=True):
            request, position = divmod(entry, MASK_STRIDE)
            first, end = cu_num_logits[request : request + 2].tolist()
            if first + position < end:
                logits[first + position].masked_fill_(~row_allowed, -torch.inf)


if os.environ.get("TRITON_INTERPRET") == "1":
    patches = {
        "triton.backends": add_cpu_backend,
        "vllm.v1.sample.ops.topk_topp_sampler": truncate_by_torch,
        "vllm.v1.worker.gpu.structured_outputs": mask_by_torch,
    }
    sys.meta_path.insert(0, PatchingFinder(patches))
