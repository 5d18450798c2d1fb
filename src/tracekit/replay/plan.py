"""Decides what a replay scores, and in which batches: a function of the parent trace and the options alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracekit.errors import InputError, ModelError, TraceFormatError
from tracekit.replay.backends.base import Sequence
from tracekit.replay.parent import Ints, Key, TablePieces, merge_rows
from tracekit.replay.prompts import Prompts
from tracekit.replay.tokens import DeliveredTokens, read_delivered_tokens
from tracekit.schema import table
from tracekit.store import Trace

# Prompts and candidate lists of so many tokens are in memory at a time: about 25 MiB with 20 candidates.
_WINDOW_TOKENS = 1 << 18


@dataclass(frozen=True)
class PlannedSequence:
    """One request that will be scored.

    Attributes:
        key: the parent's run and request.
        num_prompt_tokens, num_output_tokens: its lengths.
        tokens: where its output tokens stand in the plan's token arrays.
        pieces, rows: where its rows of `requests` stand in the parent.
        outcome: its outcome in the parent, merged over processes; empty where none is known.
    """

    key: Key
    num_prompt_tokens: int
    num_output_tokens: int
    tokens: slice
    pieces: Ints
    rows: Ints
    outcome: Mapping[str, Any]

    @property
    def num_input_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens - 1


class Plan:
    """What is scored, in which order.

    Sequences are taken in order of arrival. Windows of them are sorted by length and cut into batches, so
    that a batch pads little and memory is bounded however large the trace.

    Args:
        trace: the parent.
        batch_tokens: most tokens of a batch, padding included; a longer sequence makes a batch of its own.
        limit: score the first so many requests only.

    Attributes:
        sequences: in order of arrival.
        num_unscored_tokens: delivered tokens that cannot be scored, as a row before them is missing.

    Raises:
        InputError: there is nothing to score, or a request has no prompt ids.
        TraceFormatError: rows of the parent contradict each other.
    """

    def __init__(self, trace: Trace, *, batch_tokens: int, limit: int | None = None) -> None:
        self._batch_tokens = batch_tokens
        self._requests = TablePieces(trace, "requests")
        self._tokens: DeliveredTokens = read_delivered_tokens(trace)
        prompts = Prompts(self._requests)
        selected = sorted(self._tokens.slices, key=prompts.order)[:limit]
        if not selected:
            raise InputError(f"{trace.path} holds no output tokens to score; was the recording stopped too early?")
        self.sequences = [self._planned(key, self._tokens.slices[key], prompts) for key in selected]
        unscored = self._tokens.num_unscored
        self.num_unscored_tokens = sum(unscored[key] for key in (unscored if limit is None else selected))
        self._largest_prompt_ids = prompts.largest_ids

    @property
    def num_output_tokens(self) -> int:
        return sum(sequence.num_output_tokens for sequence in self.sequences)

    @property
    def num_input_tokens(self) -> int:
        return sum(sequence.num_input_tokens for sequence in self.sequences)

    @property
    def run_ids(self) -> list[str]:
        """The parent's runs, in order of their first request."""
        return list(dict.fromkeys(sequence.key[0] for sequence in self.sequences))

    def check_model(self, model: str, vocab_size: int | None, max_num_tokens: int | None) -> None:
        """Proves, before anything is scored, that the model takes every sequence.

        Raises:
            ModelError: naming the first request that does not fit.
        """
        for sequence in self.sequences:
            largest = max(self._largest_prompt_ids[sequence.key], int(self._tokens.token_ids[sequence.tokens].max()))
            if vocab_size is not None and largest >= vocab_size:
                raise ModelError(
                    f"request '{sequence.key[1]}' has token id {largest}, but {model} has a vocabulary of "
                    f"{vocab_size}; give the model that the trace was recorded with"
                )
            if max_num_tokens is not None and sequence.num_input_tokens > max_num_tokens:
                raise ModelError(
                    f"request '{sequence.key[1]}' has {sequence.num_input_tokens} tokens to read, but {model} takes at "
                    f"most {max_num_tokens}; give the model that the trace was recorded with"
                )

    def batches(self) -> Iterator[list[tuple[PlannedSequence, Sequence]]]:
        """Yields the batches with what a backend needs of them."""
        for window in self._windows():
            loaded = self._load(window)
            for batch in cut_batches([sequence.num_input_tokens for sequence in window], self._batch_tokens):
                yield [(window[index], loaded[index]) for index in batch]

    def _planned(self, key: Key, tokens: slice, prompts: Prompts) -> PlannedSequence:
        num_prompt_tokens = prompts.length(key)
        position = int(self._tokens.positions[tokens.start])
        if position != num_prompt_tokens:
            raise TraceFormatError(
                f"request '{key[1]}': its first output token stands at position {position}, "
                f"but its prompt has {num_prompt_tokens} tokens"
            )
        pieces, rows = prompts.places(key)
        outcome = self._tokens.outcomes.get(key, {})
        return PlannedSequence(key, num_prompt_tokens, tokens.stop - tokens.start, tokens, pieces, rows, outcome)

    def _windows(self) -> Iterator[list[PlannedSequence]]:
        reached = itertools.accumulate(sequence.num_input_tokens for sequence in self.sequences)
        numbered = zip(reached, self.sequences, strict=True)
        for _, window in itertools.groupby(numbered, key=lambda entry: (entry[0] - 1) // _WINDOW_TOKENS):
            yield [sequence for _, sequence in window]

    def _load(self, window: list[PlannedSequence]) -> list[Sequence]:
        columns = [column.name for column in table("requests").columns]
        pieces = np.concatenate([sequence.pieces for sequence in window])
        rows = np.concatenate([sequence.rows for sequence in window])
        requests = iter(self._requests.take(columns, pieces, rows).to_pylist())
        merged = [merge_rows([next(requests) for _ in sequence.rows]) for sequence in window]
        candidates = iter(self._tokens.candidates([sequence.tokens for sequence in window]))
        return [
            Sequence(
                run_id=sequence.key[0],
                request_id=sequence.key[1],
                request=request,
                prompt_ids=np.asarray(request["prompt_token_ids"], np.int32),
                output_ids=self._tokens.token_ids[sequence.tokens],
                candidate_ids=next(candidates),
            )
            for sequence, request in zip(window, merged, strict=True)
        ]


def cut_batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yields indices of sequences, longest first, so that no batch exceeds its tokens with padding.

    The longest come first so that what does not fit into memory fails at once, and time left is overestimated
    rather than underestimated.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // lengths[order[start]])
        yield order[start : start + size]
        start += size
