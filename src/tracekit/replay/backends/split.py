"""Splits a causal language model into its body and its head, so that logits are made for chosen rows only.

The head is the model's own code after its body: scale, soft cap, bias and whatever else an architecture does there
need not be known. For this the body is made to give back hidden states that were computed before.

Shapes: B sequences, T positions, H hidden, R chosen rows, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from tracekit.errors import ModelError

_CHECKED_IDS = (0, 1, 2, 1, 0, 3, 2)


class SplitModel:
    """A causal language model (transformers' interface) in two halves.

    Args:
        model: the model, in evaluation mode.
        head_dtype: what the last projection's operands are cast to.
        name: what error messages call it.

    Raises:
        ModelError: body and head apart do not give the logits that the model gives in one.
    """

    def __init__(self, model: Any, head_dtype: torch.dtype, name: str) -> None:
        self._model = model
        self._body = _find_body(model, name)
        self._head_dtype = next(model.parameters()).dtype
        if head_dtype != self._head_dtype:
            # A copy: where the head is tied to the embedding, the embedding keeps its dtype.
            model.set_output_embeddings(copy.deepcopy(model.get_output_embeddings()).to(head_dtype))
            self._head_dtype = head_dtype
        probe = self.logits(self.hidden(_checked_ids(model))[0])
        self.vocab_size = int(probe.shape[1])
        self.logits_dtype = probe.dtype

    def hidden(self, input_ids_BT: torch.Tensor, mask_BT: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the final hidden states [B, T, H], after the final norm."""
        return _hidden_states(self._body, input_ids_BT, mask_BT)

    def logits(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        """Returns the logits [R, V] of chosen hidden states."""
        return _head_logits(self._model, self._body, hidden_RH.to(self._head_dtype))


def _find_body(model: Any, name: str) -> nn.Module:
    """Returns the module whose hidden states the head reads, proved on a short input."""
    ids_BT = _checked_ids(model)
    whole_TV = model(input_ids=ids_BT, use_cache=False).logits[0].float()
    # Decoders of encoder-decoder families are called directly, past the model around them.
    get_decoder = getattr(model, "get_decoder", lambda: None)
    candidates = [model.base_model, get_decoder()]
    tolerance = 4 * torch.finfo(next(model.parameters()).dtype).eps * max(1.0, float(whole_TV.abs().max()))
    difference = float("nan")
    for body in candidates:
        if not isinstance(body, nn.Module) or body is model:
            continue
        try:
            split_TV = _head_logits(model, body, _hidden_states(body, ids_BT, None)[0]).float()
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            continue
        if split_TV.shape == whole_TV.shape:
            difference = float((split_TV - whole_TV).abs().max())
            if difference <= tolerance:
                return body
    raise ModelError(
        f"{name}: the logits of {type(model).__name__} cannot be made from its final hidden states "
        f"(largest difference on a short input: {difference:g}), so the hf backend cannot score it"
    )


def _hidden_states(body: Any, input_ids_BT: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
    # Without a cache: a cache is of no use here, and packed positions would be silently wrong with one.
    hidden: torch.Tensor = body(input_ids=input_ids_BT, attention_mask=mask_BT, use_cache=False)[0]
    return hidden


def _head_logits(model: Any, body: Any, hidden_RH: torch.Tensor) -> torch.Tensor:
    recalled = _Recalled(hidden_RH.unsqueeze(0))
    placeholder_1R = torch.zeros(recalled.last_hidden_state.shape[:2], dtype=torch.long, device=hidden_RH.device)
    body.forward = recalled
    try:
        logits: torch.Tensor = model(input_ids=placeholder_1R, use_cache=False).logits[0]
    finally:
        del body.forward
    return logits


class _Recalled:
    """Stands in for a body's forward pass, and for what it returns."""

    def __init__(self, last_hidden_state: torch.Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __call__(self, *_: Any, **__: Any) -> _Recalled:
        return self

    def __getitem__(self, index: int) -> torch.Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        # Caches, attentions, router logits: what was not computed.
        if name.startswith("__"):
            raise AttributeError(name)


def _checked_ids(model: Any) -> torch.Tensor:
    vocab_size = int(model.get_input_embeddings().weight.shape[0])
    ids = [token_id % vocab_size for token_id in _CHECKED_IDS]
    return torch.tensor([ids], device=model.device)
