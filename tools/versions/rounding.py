"""How an engine's own kernels for CPUs round to bf16: rounding.py, in the interpreter of any of the releases.

Prints, by kernel, which share of its results are the exact ones rounded to the nearest bf16, and which are cut off.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from vllm.platforms import current_platform

if callable(load := getattr(current_platform, "import_kernels", None)):
    load()
else:
    import vllm._C  # noqa: F401


def told(found: torch.Tensor, exact: torch.Tensor) -> dict[str, Any]:
    full = exact.float()
    cut = (full.view(torch.int32) & -65536).view(torch.float32)
    return {
        "nearest": float((found.float() == full.bfloat16().float()).float().mean()),
        "cut": float((found.float() == cut).float().mean()),
    }


def main() -> None:
    torch.manual_seed(0)
    rows, gated, residual = (torch.randn(64, size).bfloat16() for size in (576, 1024, 576))
    normed, activated, added = torch.empty_like(rows), torch.empty(64, 512).bfloat16(), residual.clone()
    torch.ops._C.rms_norm(normed, rows, torch.ones(576).bfloat16(), 1e-5)
    torch.ops._C.silu_and_mul(activated, gated)
    torch.ops._C.fused_add_rms_norm(rows.clone(), added, torch.ones(576).bfloat16(), 1e-5)
    wide = rows.double()
    left, right = gated.double().chunk(2, 1)
    exact = {
        "rms_norm": told(normed, wide / torch.sqrt((wide**2).mean(1, keepdim=True) + 1e-5)),
        "silu_and_mul": told(activated, torch.nn.functional.silu(left) * right),
        "fused_add_rms_norm, its sum": told(added, wide + residual.double()),
    }
    print(json.dumps(exact))


if __name__ == "__main__":
    main()
