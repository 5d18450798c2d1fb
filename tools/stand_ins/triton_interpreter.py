"""Lets vLLM's Model Runner V2 run where there is no GPU, for tests: its Triton kernels are interpreted, slowly.

On a CPU vLLM falls back to the V1 model runner, since Triton offers no backend there. With these patches Triton counts
one, whose kernels its own interpreter runs on CPU tensors (TRITON_INTERPRET=1, VLLM_USE_V2_MODEL_RUNNER=1).
"""

from __future__ import annotations

from types import FunctionType, ModuleType
from typing import Any

from patching import patch

_ROW_BY_ROW = ("gumbel", "logprob", "min_p", "penalties", "prompt_logprob")
_WHOLE_ROW = 1 << 16


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


def mend_interpreter(interpreter: ModuleType) -> None:
    """Has booleans stay booleans when they are spread over a block, and bf16 compared as numbers.

    The interpreter keeps bf16 in unsigned integers and compares those, so that negative logits are greater than
    positive ones.
    """
    import numpy as np

    builder, handle_of, language = interpreter.InterpreterBuilder, interpreter.TensorHandle, interpreter.tl
    binary_op = builder.binary_op

    def create_splat(_self: Any, block: Any, scalar: Any) -> Any:
        return handle_of(np.full(block.shape, scalar.data.flat[0], dtype=scalar.data.dtype), scalar.dtype.scalar)

    def widened(handle: Any) -> Any:
        return handle_of((handle.data.astype(np.uint32) << 16).view(np.float32), language.float32)

    def mended_op(self: Any, left: Any, right: Any, operation: Any) -> Any:
        if left.dtype.scalar != language.bfloat16:
            return binary_op(self, left, right, operation)
        found = binary_op(self, widened(left), widened(right), operation).data
        if found.dtype == np.float32:
            bits = found.view(np.uint32)
            found = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        return handle_of(found, language.bfloat16)

    builder.create_splat, builder.binary_op = create_splat, mended_op


def gather_integers(batch_shard: ModuleType) -> None:
    """Has integers gathered as floats: vLLM's shared memory for CPUs moves bits, but takes floats only."""
    import torch

    gather = batch_shard.tensor_model_parallel_all_gather

    def gather_any(tensor: Any, dim: int) -> Any:
        return gather(tensor.view(torch.float32), dim=dim).view(tensor.dtype)

    batch_shard.tensor_model_parallel_all_gather = gather_any


def take_rows_whole(sampling: ModuleType) -> None:
    """Has kernels take a row of the vocabulary at once: each block of 1024 costs the interpreter as much as all."""
    for function in vars(sampling).values():
        if isinstance(function, FunctionType) and function.__module__ == sampling.__name__:
            code = function.__code__
            wide = tuple(_WHOLE_ROW if const in (1024, 8192) else const for const in code.co_consts)
            function.__code__ = code.replace(co_consts=wide)


def install() -> None:
    """Patches Triton and vLLM."""
    patch(
        {
            "triton.backends": add_cpu_backend,
            "vllm.v1.sample.ops.topk_topp_sampler": truncate_by_torch,
            "triton.runtime.interpreter": mend_interpreter,
            "vllm.v1.worker.gpu.sample.batch_shard": gather_integers,
            **{f"vllm.v1.worker.gpu.sample.{name}": take_rows_whole for name in _ROW_BY_ROW},
        }
    )
