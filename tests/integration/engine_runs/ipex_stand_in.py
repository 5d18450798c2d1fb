"""Lets V0 use its prefix cache and chunks of prompts on a CPU, for which it calls Intel's extension for PyTorch.

Of that extension this is the one function that is called, in plain torch. It is put in place once an engine is made:
whether the extension is found there decides on block size and layout of the KV cache.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# How many tokens each call was given to compute, over all requests of the batch; one call a layer.
num_computed: list[int] = []


def install() -> None:
    """Makes `import intel_extension_for_pytorch.llm.modules` find the function below."""
    package = "intel_extension_for_pytorch"
    for name in (package, f"{package}.llm", f"{package}.llm.modules"):
        sys.modules[name] = ModuleType(name)
    sys.modules[name].PagedAttention = SimpleNamespace(flash_attn_varlen_func=attend)  # type: ignore[attr-defined]


def attend(
    output_THD: Tensor,
    query_THD: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_starts: Tensor,
    kv_starts: Tensor,
    max_query_len: int,  # noqa: ARG001
    max_kv_len: int,  # noqa: ARG001
    scale: float,
    is_causal: bool,
    block_tables: Tensor,
    alibi_slopes: Any,
) -> None:
    """Writes the attention of each request's new tokens to all of its tokens, whose keys and values are in the cache.

    T tokens, H heads, D head size; keys are laid out as (blocks, heads, D / x, block size, x), values as (blocks,
    heads, D, block size).
    """
    assert is_causal
    assert alibi_slopes is None
    num_computed.append(int(query_starts[-1]))
    block_size = value_cache.shape[3]
    groups = query_THD.shape[1] // value_cache.shape[1]
    for i, table in enumerate(block_tables):
        rows = slice(int(query_starts[i]), int(query_starts[i + 1]))
        kv_len = int(kv_starts[i + 1] - kv_starts[i])
        blocks = table[: -(-kv_len // block_size)].long()
        keys = key_cache[blocks].permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)[:kv_len]
        values = value_cache[blocks].permute(0, 3, 1, 2).flatten(0, 1)[:kv_len]
        num_new = rows.stop - rows.start
        sees = torch.ones(num_new, kv_len, dtype=torch.bool).tril(kv_len - num_new)
        attended = scaled_dot_product_attention(
            query_THD[rows].transpose(0, 1),
            keys.repeat_interleave(groups, 1).transpose(0, 1),
            values.repeat_interleave(groups, 1).transpose(0, 1),
            attn_mask=sees,
            scale=scale,
        )
        output_THD[rows] = attended.transpose(0, 1)
