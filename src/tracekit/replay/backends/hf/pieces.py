"""Which tokens of which sequences each forward pass reads, in prefill and in decode mode.

Shapes: n tokens of a piece, N tokens of a pass, H hidden size, R rows that predict output tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracekit.replay.backends.base import Sequence as RecordedSequence

Int64Array = npt.NDArray[np.int64]


class SequenceCache:
    """What a model keeps of the tokens of one sequence that it has read.

    Attributes:
        length: how many.
    """

    def __init__(self) -> None:
        self.length = 0


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one sequence that a pass reads.

    Attributes:
        token_ids: int64 [n].
        cache: holds the tokens before them, and then these too; None where the piece is all there will be.
    """

    token_ids: Int64Array
    cache: SequenceCache | None = None

    @property
    def start(self) -> int:
        return 0 if self.cache is None else self.cache.length


class Reader(Protocol):
    """A model's body, from pieces of sequences to hidden states."""

    def new_cache(self, num_tokens: int) -> SequenceCache:
        """Returns an empty cache for a sequence of so many tokens."""
        ...

    def hidden(self, pieces: Sequence[Piece]) -> Tensor:
        """Returns the final hidden states [N, H] of all pieces, one after the other, and moves their caches on."""
        ...


@dataclass(frozen=True)
class PassLimits:
    """What a forward pass reads at most.

    Attributes:
        num_tokens: in all; a longer prompt is read in chunks.
        num_sequences: side by side, in decode mode.
        decode: output tokens are read one by one, as an engine generates them; prompts at once.
    """

    num_tokens: int
    num_sequences: int
    decode: bool


class WeightsSchedule(Protocol):
    """Which weights each output token is scored under.

    Attributes:
        clears: whether a sequence's cache is made anew under new weights; else it goes on with what old ones made.
    """

    clears: bool

    def of(self, sequence: RecordedSequence) -> Int64Array:
        """Returns for each output token which weights, numbered in the order in which they are loaded, int64 [T]."""
        ...

    def load(self, weights: int) -> None:
        """Gives the model these weights, where it has not got them."""
        ...


class _Reading:
    """One sequence and how far it has been read.

    `position` is what its cache holds; `num_done` the tokens whose rows are known. They differ while a cache that was
    cleared is made anew.
    """

    def __init__(
        self, index: int, sequence: RecordedSequence, reader: Reader, limits: PassLimits, weights_T: Int64Array | None
    ) -> None:
        self.index = index
        self._token_ids = np.concatenate([sequence.prompt_ids, sequence.output_ids[:-1]]).astype(np.int64)
        self._num_prompt = len(sequence.prompt_ids)
        self._reader = reader
        self._weights_T = weights_T
        self._weights: int | None = None
        self._position = self._num_done = 0
        self._num_at_once = self._num_prompt if limits.decode else len(self._token_ids)
        is_whole = self._num_at_once == len(self._token_ids) <= limits.num_tokens
        self._cache = None if is_whole else reader.new_cache(len(self._token_ids))

    @property
    def is_done(self) -> bool:
        return self._num_done == len(self._token_ids)

    @property
    def next_weights(self) -> int:
        """The weights that its next piece is read under."""
        return 0 if self._weights_T is None else int(self._weights_T[max(0, self._num_done - self._num_prompt + 1)])

    def change_weights(self, weights: int, *, clear: bool) -> None:
        """Takes note of the weights that are loaded; its cache is made anew where they are others."""
        if clear and self._weights not in (None, weights) and self._position:
            self._cache = self._reader.new_cache(len(self._token_ids))
            self._position = 0
        self._weights = weights

    def next_piece(self, room: int) -> Piece | None:
        """Returns what it reads next, where that, or the beginning of it, fits into so many tokens."""
        wanted = max(self._num_at_once, self._num_done + 1) - self._position
        if wanted > room:
            if self._cache is None:
                return None
            wanted = room
        return Piece(self._token_ids[self._position : self._position + wanted], self._cache)

    def predicting(self, piece: Piece, hidden_nH: Tensor) -> Tensor:
        """Returns of a piece's hidden states those that predict output tokens, and counts the piece as read."""
        first = max(self._num_prompt - 1, self._num_done) - self._position
        self._position += len(piece.token_ids)
        self._num_done = max(self._num_done, self._position)
        return hidden_nH[max(0, first) :]


def predicting_rows(
    batch: Sequence[RecordedSequence], reader: Reader, limits: PassLimits, schedule: WeightsSchedule | None = None
) -> Tensor:
    """Returns the final hidden states [R, H] that predict the batch's output tokens, one sequence after the other.

    Args:
        batch: the sequences.
        reader: the model's body.
        limits: of its passes.
        schedule: what weights are changed to, and when; a piece is read under those of the token it predicts.
    """
    rows: list[list[Tensor]] = [[] for _ in batch]
    waiting: Iterator[_Reading] = (
        _Reading(i, sequence, reader, limits, None if schedule is None else schedule.of(sequence))
        for i, sequence in enumerate(batch)
    )
    active: list[_Reading] = []
    upcoming = next(waiting, None)
    while active or upcoming is not None:
        while upcoming is not None and (not limits.decode or len(active) < limits.num_sequences):
            active.append(upcoming)
            upcoming = next(waiting, None)
        weights = min(reading.next_weights for reading in active)
        if schedule is not None:
            schedule.load(weights)
        room = limits.num_tokens
        chosen: list[tuple[_Reading, Piece]] = []
        for reading in active:
            if reading.next_weights == weights and room:
                reading.change_weights(weights, clear=schedule is not None and schedule.clears)
                if (piece := reading.next_piece(room)) is not None:
                    chosen.append((reading, piece))
                    room -= len(piece.token_ids)
        hidden_NH = reader.hidden([piece for _, piece in chosen])
        begin = 0
        for reading, piece in chosen:
            end = begin + len(piece.token_ids)
            rows[reading.index].append(reading.predicting(piece, hidden_NH[begin:end]))
            begin = end
        active = [reading for reading in active if not reading.is_done]
    return torch.cat([row for of_sequence in rows for row in of_sequence])
