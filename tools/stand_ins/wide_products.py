"""Takes bf16 products in float32 and rounds them, on processors where torch multiplies bf16 by a plain loop.

Without AVX-512 oneDNN has no bf16 product, and torch's own takes four to six times as long as one in float32. With this
patch (TRACEKIT_WIDE_PRODUCTS=1) linear layers multiply in float32 and round once: what a bf16 product is, but for the
order in which it is summed. Weights are widened as they are read, some rows at a time, so that a change of them counts
at once, however it is made.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from patching import patch

# So many rows of a weight are widened at a time: they stay in the processor's caches until they are multiplied.
_NUM_ROWS = 1024
# Threads share out the rows of a product; of fewer than four, each is summed in another order than in any other batch.
_NUM_SIDE_BY_SIDE = 8


def are_products_slow() -> bool:
    """Whether this is an x86 processor without AVX-512."""
    info = Path("/proc/cpuinfo")
    flags = (
        next((line for line in info.read_text().splitlines() if line.startswith("flags")), "") if info.exists() else ""
    )
    return " avx2 " in flags and " avx512f " not in flags


def multiply_wide(functional: ModuleType) -> None:
    """Replaces `linear`."""
    import torch

    linear = functional.linear

    def wide_linear(input: Any, weight: Any, bias: Any = None) -> Any:
        is_served = input.dtype == weight.dtype == torch.bfloat16 and input.device.type == "cpu" and weight.dim() == 2
        # Torch has a quick product for one row; a gradient needs its own.
        if not is_served or input.numel() == input.shape[-1] or (torch.is_grad_enabled() and weight.requires_grad):
            return linear(input, weight, bias)
        rows = input.reshape(-1, input.shape[-1])
        wide = functional.pad(rows.float(), (0, 0, 0, -len(rows) % _NUM_SIDE_BY_SIDE))
        starts = range(0, weight.shape[0], _NUM_ROWS)
        parts = [linear(wide, weight[start : start + _NUM_ROWS].float()) for start in starts]
        product = (parts[0] if len(parts) == 1 else torch.cat(parts, -1))[: len(rows)]
        product = product if bias is None else product + bias.float()
        return product.to(torch.bfloat16).reshape(*input.shape[:-1], weight.shape[0])

    functional.linear = wide_linear


def install() -> None:
    """Patches torch, in this process, whether it is imported already or not."""
    patch({"torch.nn.functional": multiply_wide})
