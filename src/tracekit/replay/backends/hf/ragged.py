"""Forward passes over sequences of any lengths side by side: no padding, and a KV cache for each that goes on.

A pass's tokens stand in one row, one sequence after the other. All layers but attention treat each token by itself; the
attention function that is registered here calls the model's own one for each sequence alone, on that sequence's keys
and values. So a prefill, one in chunks, and decoding token by token are one thing: pieces of sequences.

Whether a model's code works in this way is proved on a short input before it is relied on, see `readers`.

Shapes: N tokens of a pass, n tokens of a piece, T tokens of a sequence so far, H hidden size, K heads, D head size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tracekit.replay.backends.hf.pieces import Piece, SequenceCache

_NAME = "tracekit_ragged"


class KvCache(SequenceCache):
    """Keys and values of one sequence, by layer."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self._num_tokens = num_tokens
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, key_1KnD: Tensor, value_1KnD: Tensor) -> tuple[Tensor, Tensor]:
        """Adds a layer's keys and values behind those it holds, and returns all of them."""
        if layer not in self._layers:
            self._layers[layer] = (self._empty(key_1KnD), self._empty(value_1KnD))
        stop = self.length + key_1KnD.shape[2]
        keys, values = self._layers[layer]
        keys[:, :, self.length : stop] = key_1KnD
        values[:, :, self.length : stop] = value_1KnD
        return keys[:, :, :stop], values[:, :, :stop]

    def _empty(self, like_1KnD: Tensor) -> Tensor:
        batch, heads, _, width = like_1KnD.shape
        return like_1KnD.new_empty(batch, heads, self._num_tokens, width)


class RaggedReader:
    """Runs a decoder of transformers over pieces of sequences.

    Args:
        body: the decoder: from token ids to final hidden states.
    """

    def __init__(self, body: Any) -> None:
        self._body = body
        self._attention: str = body.config._attn_implementation
        body.set_attn_implementation(_NAME)

    def close(self) -> None:
        """Gives the decoder its own attention back."""
        self._body.set_attn_implementation(self._attention)

    def new_cache(self, num_tokens: int) -> SequenceCache:
        return KvCache(num_tokens)

    def hidden(self, pieces: Sequence[Piece]) -> Tensor:
        """Returns the final hidden states [N, H] of all pieces, one after the other, and moves their caches on."""
        device = next(self._body.parameters()).device
        ids_N = torch.from_numpy(np.concatenate([piece.token_ids for piece in pieces]))
        positions_N = np.concatenate([piece.start + np.arange(len(piece.token_ids)) for piece in pieces])
        _passes.append(_Pass(pieces, self._attention))
        try:
            hidden_1NH: Tensor = self._body(
                input_ids=ids_N.to(device).unsqueeze(0),
                position_ids=torch.from_numpy(positions_N).to(device).unsqueeze(0),
                past_key_values=_NoCache(),
                use_cache=False,
            )[0]
        finally:
            _passes.pop()
        for piece in pieces:
            if piece.cache is not None:
                piece.cache.length += len(piece.token_ids)
        return hidden_1NH[0]


class _Pass:
    """What one forward pass reads, for the attention function."""

    def __init__(self, pieces: Sequence[Piece], attention: str) -> None:
        self.pieces = pieces
        self.attention = attention
        ends = np.cumsum([len(piece.token_ids) for piece in pieces]).tolist()
        self.bounds = list(zip([0, *ends[:-1]], ends, strict=True))


# The pass that is on: not every model hands a caller's arguments on to its attention.
_passes: list[_Pass] = []


class _NoCache(DynamicCache):
    """Stands where a cache would, so that a model neither makes one nor takes the positions for packed sequences."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return 0

    def get_query_offset(self, *_: Any, **__: Any) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, *_: Any, **__: Any) -> tuple[int, int]:
        return query_length, 0


class _Mask:
    """The mask that layers of one kind share, made for a piece when attention first asks for it."""

    def __init__(self, make: Callable[..., Tensor | None], arguments: dict[str, Any]) -> None:
        self._make = make
        self._arguments = arguments
        self._made: dict[int, Tensor | None] = {}

    def of_piece(self, index: int, start: int, length: int) -> Tensor | None:
        if index not in self._made:
            sizes = {"batch_size": 1, "q_length": length, "kv_length": start + length, "q_offset": start}
            self._made[index] = self._make(**self._arguments | sizes | {"kv_offset": 0, "attention_mask": None})
        return self._made[index]


def _mask(**arguments: Any) -> _Mask:
    return _Mask(ALL_MASK_ATTENTION_FUNCTIONS[_passes[-1].attention], arguments)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: _Mask | None, **options: Any
) -> tuple[Tensor, None]:
    """The attention of every layer: the model's own, for each piece alone."""
    this = _passes[-1]
    attend = _own_attention(module, this.attention)
    positions_1N = options.pop("position_ids", None)
    outputs = []
    for index, (piece, (begin, end)) in enumerate(zip(this.pieces, this.bounds, strict=True)):
        keys, values = key[:, :, begin:end], value[:, :, begin:end]
        if isinstance(piece.cache, KvCache):
            keys, values = piece.cache.extend(module.layer_idx, keys, values)
        mask = None if attention_mask is None else attention_mask.of_piece(index, piece.start, end - begin)
        if positions_1N is not None:
            options["position_ids"] = positions_1N[:, begin:end]
        outputs.append(attend(module, query[:, :, begin:end], keys, values, mask, **options)[0])
    return torch.cat(outputs, dim=1), None


def _own_attention(module: Any, attention: str) -> Callable[..., Any]:
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(attention, eager)
    return found


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _mask)
