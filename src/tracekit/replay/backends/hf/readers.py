"""Finds how a model's body can read pieces of sequences: side by side without padding, or in its own plain ways.

Shapes: B sequences, T positions with padding, N tokens of a pass, H hidden size.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracekit.errors import ModelError
from tracekit.replay.backends.hf.pieces import Piece, Reader, SequenceCache
from tracekit.replay.backends.hf.ragged import RaggedReader

logger = logging.getLogger("tracekit")

# Rotary embeddings that look at the longest sequence of a pass: its sequences are read one by one.
_BY_LONGEST = ("dynamic", "longrope")
# Between two ways of reading, in parts of the norm. Rounding makes about 0.01 in bf16; a token too many in sight, 0.3.
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_OF_OTHERS = 0.05


class PlainReader:
    """Runs a decoder as anyone would: whole sequences padded on the right, others one by one with its own cache.

    Args:
        body: the decoder: from token ids to final hidden states.
        num_tokens: most tokens of a pass, padding included.
        mixes: whether sequences may be read side by side.
        most_cached: most tokens that may be read at once behind others, with the model's own cache; 0 where that
            cache is not to be trusted.
    """

    def __init__(self, body: Any, num_tokens: int, *, mixes: bool = True, most_cached: int = sys.maxsize) -> None:
        self._body = body
        self._num_tokens = num_tokens if mixes else 0
        self._most_cached = most_cached

    def new_cache(self, num_tokens: int) -> SequenceCache:  # noqa: ARG002
        if not self._most_cached:
            raise ModelError(
                f"{type(self._body).__name__} with its KV cache does not give what it gives in one forward pass, so "
                "it cannot be replayed in decode mode, nor in chunks; choose prefill, and more tokens for a pass"
            )
        return _OwnCache()

    def hidden(self, pieces: Sequence[Piece]) -> Tensor:
        hidden: list[Tensor] = []
        for group in self._groups(pieces):
            hidden += self._padded(group) if group[0].cache is None else self._alone(group[0])
        return torch.cat(hidden)

    def _groups(self, pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
        """Yields pieces that are read together: whole sequences up to the limit, or one that goes on."""
        group: list[Piece] = []
        for piece in pieces:
            width = max(len(other.token_ids) for other in [*group, piece])
            is_full = width * (len(group) + 1) > self._num_tokens
            if group and (is_full or piece.cache is not None or group[-1].cache is not None):
                yield group
                group = []
            group.append(piece)
        yield group

    def _padded(self, pieces: list[Piece]) -> list[Tensor]:
        width = max(len(piece.token_ids) for piece in pieces)
        ids_BT = np.zeros((len(pieces), width), np.int64)
        mask_BT = np.zeros((len(pieces), width), np.int64)
        for row, piece in enumerate(pieces):
            ids_BT[row, : len(piece.token_ids)] = piece.token_ids
            mask_BT[row, : len(piece.token_ids)] = 1
        # Padding stands on the right: no position of a causal model sees it. Without any, no mask is needed.
        mask = None if mask_BT.all() else self._tensor(mask_BT)
        hidden_BTH: Tensor = self._body(input_ids=self._tensor(ids_BT), attention_mask=mask, use_cache=False)[0]
        return [row_TH[: len(piece.token_ids)] for row_TH, piece in zip(hidden_BTH, pieces, strict=True)]

    def _alone(self, piece: Piece) -> list[Tensor]:
        cache, found, read = piece.cache, [], 0
        assert isinstance(cache, _OwnCache)
        while read < len(piece.token_ids):
            length = min(len(piece.token_ids) - read, self._most_cached if cache.length else sys.maxsize)
            ids_1T = self._tensor(piece.token_ids[None, read : read + length])
            output = self._body(input_ids=ids_1T, use_cache=True, **cache.of_model)
            names = (name for name in ("past_key_values", "cache_params") if getattr(output, name, None) is not None)
            cache.of_model = {name: getattr(output, name) for name in names}
            cache.length += length
            read += length
            found.append(output[0][0])
        return found

    def _tensor(self, values: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(values).to(next(self._body.parameters()).device)


class _OwnCache(SequenceCache):
    """A cache of whatever kind the model makes for itself.

    Attributes:
        of_model: the cache, by the name of the argument that takes it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of_model: dict[str, Any] = {}


def reader_of(body: Any, num_tokens: int) -> Reader:
    """Returns the quickest way of reading that gives, on a short input, what plain forward passes give."""
    sequences = _checked_ids(body)
    expected = [_plain_pass(body, ids) for ids in sequences]
    mixes = not _looks_at_the_longest(body.config)
    tolerance = _TOLERANCES.get(next(body.parameters()).dtype, _TOLERANCE_OF_OTHERS)
    if mixes:
        ragged = RaggedReader(body)
        if _difference(ragged, sequences, expected) <= tolerance:
            return ragged
        ragged.close()
    # Models that keep a state instead of keys and values may take only one token behind others.
    for most_cached in (sys.maxsize, 1):
        plain = PlainReader(body, num_tokens, mixes=mixes, most_cached=most_cached)
        if _difference(plain, sequences, expected) <= tolerance:
            return plain
    return PlainReader(body, num_tokens, mixes=mixes, most_cached=0)


def _looks_at_the_longest(config: Any) -> bool:
    rope = json.dumps(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None), default=str)
    return any(f'"{kind}"' in rope for kind in _BY_LONGEST)


def _checked_ids(body: Any) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    vocab_size = int(body.get_input_embeddings().weight.shape[0])
    random = np.random.default_rng(0)
    return [random.integers(0, vocab_size, length) for length in (5, 11, 3)]


def _plain_pass(body: Any, token_ids: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
    ids_1T = torch.from_numpy(token_ids[None]).to(next(body.parameters()).device)
    hidden_1TH: Tensor = body(input_ids=ids_1T, use_cache=False)[0]
    return hidden_1TH[0].float()


def _difference(reader: Reader, sequences: list[np.ndarray[Any, np.dtype[np.int64]]], expected: list[Tensor]) -> float:
    """Returns how far sequences side by side, in chunks, and token by token are from what each of them gives alone."""
    whole, chunked, stepped = sequences
    chunks, steps = (reader.new_cache(len(ids)) for ids in (chunked, stepped))
    found: list[list[Tensor]] = [[], [], []]
    passes = (
        [(0, whole, None), (1, chunked[:4], chunks), (2, stepped[:1], steps)],
        [(1, chunked[4:9], chunks), (2, stepped[1:2], steps)],
        [(2, stepped[2:], steps), (1, chunked[9:], chunks)],
    )
    try:
        for chosen in passes:
            hidden = reader.hidden([Piece(ids, cache) for _, ids, cache in chosen]).float()
            lengths = [len(ids) for _, ids, _ in chosen]
            for (index, _, _), rows in zip(chosen, torch.split(hidden, lengths), strict=True):
                found[index].append(rows)
    except Exception as error:  # noqa: BLE001 - whatever a model's code does not like about it, there are other ways
        logger.debug("tracekit: %s cannot read in pieces: %r", type(reader).__name__, error)
        return float("inf")
    return max(
        float((torch.cat(rows) - alone).norm() / alone.norm()) for rows, alone in zip(found, expected, strict=True)
    )
