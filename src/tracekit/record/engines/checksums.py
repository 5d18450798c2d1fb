"""Checksums of a model's head and embedding at each version of its weights, for those who ask for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Checksums:
    """Copies the weights where they are sure to stand still, hashes them where it costs the engine nothing."""

    def __init__(self) -> None:
        self._last: dict[str, str] | None = None

    def take(self, model: nn.Module) -> Callable[[], dict[str, Any]]:
        """Copies head and embedding to the host; returns what hashes the copies into attributes of an event.

        What is returned must be called once, and in the order of the calls that returned it.
        """
        found = head_and_embedding(model)
        is_tied = len(found) == 2 and len({tensor.data_ptr() for tensor in found.values()}) == 1
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in found.items()}
        if is_tied:
            copies["head"] = copies["embedding"]

        def attributes() -> dict[str, Any]:
            hashes = {name: tensor_sha256(tensor) for name, tensor in copies.items()}
            last, self._last = self._last, hashes
            old = {} if last is None else {"old_checksums": last}
            return {**old, "checksums": hashes, "head_is_embedding": is_tied}

        return attributes


def tensor_sha256(tensor: Tensor) -> str:
    """Returns the SHA-256, in hex, of a tensor's bytes in row-major order; as vLLM's compute_weight_checksums."""
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def head_and_embedding(model: nn.Module) -> dict[str, Tensor]:
    """Returns the weights of the last projection and of the token embedding, as far as this process has them."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if name.rsplit(".", 1)[-1] == "lm_head" or "ParallelLMHead" in kinds:
            found.setdefault("head", weight)
        elif "VocabParallelEmbedding" in kinds:
            found.setdefault("embedding", weight)
    return dict(sorted(found.items()))
