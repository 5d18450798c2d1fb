"""Splits a causal language model into its body and its head, so that logits are made for chosen rows only.

The head is the model's own code after its body: scale, soft cap, bias and whatever else an architecture does there
need not be known. For this the body is made to give back hidden states that were computed before.

Shapes: B sequences, T positions, H hidden, R chosen rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tracekit.errors import ModelError
from tracekit.replay.head import HeadDtypes, Projection

HeadWeights: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]

_CHECKED_IDS = (0, 1, 2, 1, 0, 3, 2)


class SplitModel:
    """A causal language model (transformers' interface) in two halves.

    Args:
        model: the model, in evaluation mode.
        head: dtypes of its last projection; None leaves it as it is.
        name: what error messages call it.

    Attributes:
        body: from token ids to final hidden states, after the final norm.
        hidden_size: entries of a hidden state.
        vocab_size: entries of a logits row.

    Raises:
        ModelError: body and head apart do not give the logits that the model gives in one.
    """

    def __init__(self, model: Any, head: HeadDtypes | None, name: str) -> None:
        self._model = model
        self._name = name
        self.body = _find_body(model, name)
        if head is not None:
            _set_head(model, head, name)
        self._checked_RH = _hidden_states(self.body, _checked_ids(model))[0]
        self.hidden_size = int(self._checked_RH.shape[1])
        self.vocab_size = int(self.logits(self._checked_RH).shape[1])

    @property
    def logits_dtype(self) -> torch.dtype:
        """What a logits row comes in; autocast may change it."""
        return self.logits(self._checked_RH).dtype

    def change_weights(self, other: Any) -> None:
        """Gives it the weights of another model of the same architecture.

        Raises:
            ModelError: it is of another one.
        """
        head = self._model.get_output_embeddings()
        weights = other.state_dict()
        try:
            self._model.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError(
                f"{self._name}: other weights do not fit it: {' '.join(str(error).split())[:300]}"
            ) from error
        if isinstance(head, Projection):
            head.set_weights(other.get_output_embeddings())

    def head_weights(self) -> HeadWeights:
        """Returns a copy of the weights that its head has now."""
        head = self._model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        return head.weight.detach().clone(), None if bias is None else bias.detach().clone()

    def logits(self, hidden_RH: torch.Tensor, weights: HeadWeights | None = None) -> torch.Tensor:
        """Returns the logits [R, V] of chosen hidden states.

        Args:
            hidden_RH: hidden states.
            weights: what `head_weights` gave before the weights changed; by default those of now.
        """
        if weights is None:
            return _head_logits(self._model, self.body, hidden_RH)
        head = self._model.get_output_embeddings()
        own = head.weight, getattr(head, "bias", None)
        head.weight, head.bias = (None if values is None else nn.Parameter(values, False) for values in weights)
        try:
            return _head_logits(self._model, self.body, hidden_RH)
        finally:
            head.weight, head.bias = own


def _set_head(model: Any, dtypes: HeadDtypes, name: str) -> None:
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        kind = f"{type(head).__module__.partition('.')[0]}.{type(head).__name__}"
        raise ModelError(
            f"{name}: its head is no plain linear layer but {kind}, so its dtypes are fixed; leave out --head-dtype "
            "and --head-output-dtype"
        )
    model.set_output_embeddings(Projection(head, dtypes))


def by_group(
    hidden_RH: torch.Tensor, groups_R: npt.NDArray[np.int64], logits_of: Callable[[torch.Tensor, int], torch.Tensor]
) -> torch.Tensor:
    """Returns the logits [R, V] of rows, those of each group made together.

    Args:
        hidden_RH: hidden states.
        groups_R: the number of each row's group.
        logits_of: makes the logits of the rows of one group.
    """
    logits_RV: torch.Tensor | None = None
    for group in np.unique(groups_R).tolist():
        rows = torch.from_numpy(np.flatnonzero(groups_R == group)).to(hidden_RH.device)
        made = logits_of(hidden_RH[rows], group)
        if len(rows) == len(hidden_RH):
            return made
        if logits_RV is None:
            logits_RV = made.new_empty(len(hidden_RH), made.shape[1])
        logits_RV[rows] = made
    assert logits_RV is not None
    return logits_RV


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
            split_TV = _head_logits(model, body, _hidden_states(body, ids_BT)[0]).float()
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


def _hidden_states(body: Any, input_ids_BT: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = body(input_ids=input_ids_BT, use_cache=False)[0]
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
