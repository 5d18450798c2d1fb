"""Decides what a replay scores, and in which batches: a function of the parent trace and the options alone.

A batch is what is resumed, and what is handed to a worker: how a replay is interrupted or spread changes no result.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.errors import ConfigError, InputError, ModelError, TraceFormatError
from tracekit.replay.backends.base import BatchLimits, Sequence
from tracekit.replay.hidden import HiddenRows
from tracekit.replay.parent import Ints, Key, TablePieces, merge_rows
from tracekit.replay.prompts import Prompts
from tracekit.replay.steps import BatchSizes, RecordedSteps
from tracekit.replay.tokens import DeliveredTokens, read_delivered_tokens
from tracekit.schema import table
from tracekit.store import Trace

# Prompts and candidate lists of so many tokens are in memory at a time: about 25 MiB with 20 candidates.
_WINDOW_TOKENS = 1 << 18
# The same of hidden states: about 64 MiB where they have 4,096 entries.
_WINDOW_TOKENS_OF_HIDDEN = 1 << 12


@dataclass(frozen=True)
class PlannedSequence:
    """One request that will be scored.

    Attributes:
        key: the parent's run and request.
        num_prompt_tokens, num_output_tokens: its lengths.
        tokens: where its output tokens stand in the plan's token arrays.
        pieces, rows: where its rows of `requests` stand in the parent.
        outcome: its outcome in the parent, merged over processes; empty where none is known.
        arrival: its place among all, in order of arrival.
    """

    key: Key
    num_prompt_tokens: int
    num_output_tokens: int
    tokens: slice
    pieces: Ints
    rows: Ints
    outcome: Mapping[str, Any]
    arrival: int = 0

    @property
    def num_input_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens - 1


class Plan:
    """What is scored, in which order.

    Sequences are taken in order of arrival. Windows of them are sorted by length and cut into batches, so that
    those of one batch are much alike and memory is bounded however large the trace.

    Args:
        trace: the parent.
        select: returns those to be scored of all requests, which it is given in order of arrival.
        needs: what a backend needs besides tokens: 'hidden' (tokens without are not scored), 'weights', 'steps',
            'batch_sizes'.

    Attributes:
        sequences: in order of arrival.
        num_unscored_tokens: delivered tokens that cannot be scored, as a row before them is missing.

    Raises:
        InputError: there is nothing to score, or a request has no prompt ids.
        TraceFormatError: rows of the parent contradict each other.
    """

    def __init__(self, trace: Trace, select: Callable[[list[Key]], list[Key]], *, needs: Collection[str] = ()) -> None:
        self._requests = TablePieces(trace, "requests")
        self._tokens: DeliveredTokens = read_delivered_tokens(trace)
        self._hidden: HiddenRows | None = None
        self._window_tokens = _WINDOW_TOKENS
        self._needs_weights = "weights" in needs
        self._steps = RecordedSteps(trace) if "steps" in needs else None
        self._batch_sizes = BatchSizes(trace) if "batch_sizes" in needs else None
        if "hidden" in needs and self._tokens.slices:
            self._hidden = HiddenRows(trace, self._tokens)
            self._tokens = self._tokens.cut(self._hidden.num_of)
            self._window_tokens = _WINDOW_TOKENS_OF_HIDDEN
        prompts = Prompts(self._requests)
        found = sorted(self._tokens.slices, key=prompts.order)
        if not found:
            raise InputError(f"{trace.path} holds no output tokens to score; was the recording stopped too early?")
        selected = select(found)
        if not selected:
            raise InputError(f"none of the {len(found)} requests of {trace.path} was selected")
        self.sequences = [
            self._planned(key, self._tokens.slices[key], prompts, place) for place, key in enumerate(selected)
        ]
        unscored = self._tokens.num_unscored
        self.num_unscored_tokens = sum(unscored[key] for key in (unscored if len(selected) == len(found) else selected))
        self._largest_prompt_ids = prompts.largest_ids
        self._adapters = prompts.adapters

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
                    f"most {max_num_tokens}; give one that takes longer sequences"
                )

    def check_adapters(self, known: Collection[str]) -> None:
        """Proves that each sequence's LoRA adapter is among those that are known.

        Raises:
            ConfigError: naming the first request whose is not.
        """
        for sequence in self.sequences:
            adapter = self._adapters.get(sequence.key)
            if adapter is not None and adapter not in known:
                raise ConfigError(
                    f"request '{sequence.key[1]}' was sampled with the LoRA adapter '{adapter}', which is not given; "
                    f"add --lora {adapter}=PATH, or --lora {adapter}=base to score it without"
                )

    def cut(self, limits: BatchLimits) -> list[list[PlannedSequence]]:
        """Returns the batches."""
        return [
            [group[index] for index in batch]
            for window in self._windows()
            for group in (_by_run(window) if limits.of_one_run else [window])
            for batch in cut_batches([sequence.num_input_tokens for sequence in group], limits)
        ]

    def load(self, batches: list[list[PlannedSequence]]) -> Iterator[list[Sequence]]:
        """Yields for each batch what a backend needs of it."""
        reached = itertools.accumulate(sum(sequence.num_input_tokens for sequence in batch) for batch in batches)
        numbered = zip(reached, batches, strict=True)
        for _, group in itertools.groupby(numbered, key=lambda entry: (entry[0] - 1) // self._window_tokens):
            together = [batch for _, batch in group]
            loaded = iter(self._load([sequence for batch in together for sequence in batch]))
            for batch in together:
                yield list(itertools.islice(loaded, len(batch)))

    def digest(self) -> str:
        """Identifies what is scored: a trace that is still being written grows."""
        content = [
            [*sequence.key, sequence.num_input_tokens, sequence.num_output_tokens] for sequence in self.sequences
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def _planned(self, key: Key, tokens: slice, prompts: Prompts, arrival: int) -> PlannedSequence:
        num_prompt_tokens = prompts.length(key)
        position = int(self._tokens.positions[tokens.start])
        if position != num_prompt_tokens:
            raise TraceFormatError(
                f"request '{key[1]}': its first output token stands at position {position}, "
                f"but its prompt has {num_prompt_tokens} tokens"
            )
        pieces, rows = prompts.places(key)
        outcome = self._tokens.outcomes.get(key, {})
        num_output_tokens = tokens.stop - tokens.start
        return PlannedSequence(key, num_prompt_tokens, num_output_tokens, tokens, pieces, rows, outcome, arrival)

    def _windows(self) -> Iterator[list[PlannedSequence]]:
        reached = itertools.accumulate(sequence.num_input_tokens for sequence in self.sequences)
        numbered = zip(reached, self.sequences, strict=True)
        for _, window in itertools.groupby(numbered, key=lambda entry: (entry[0] - 1) // self._window_tokens):
            yield [sequence for _, sequence in window]

    def _load(self, window: list[PlannedSequence]) -> list[Sequence]:
        columns = [column.name for column in table("requests").columns]
        pieces = np.concatenate([sequence.pieces for sequence in window])
        rows = np.concatenate([sequence.rows for sequence in window])
        requests = iter(self._requests.take(columns, pieces, rows).to_pylist())
        merged = [merge_rows([next(requests) for _ in sequence.rows]) for sequence in window]
        tokens = [sequence.tokens for sequence in window]
        candidates = iter(self._tokens.candidates(tokens))
        hidden = itertools.repeat((None, "float32")) if self._hidden is None else self._hidden.take(tokens)
        weights = self._tokens.weights(tokens) if self._needs_weights else itertools.repeat(None)
        sizes = itertools.repeat(None) if self._batch_sizes is None else self._sizes(self._batch_sizes, window)
        return [
            Sequence(
                run_id=sequence.key[0],
                request_id=sequence.key[1],
                request=request,
                prompt_ids=np.asarray(request["prompt_token_ids"], np.int32),
                output_ids=self._tokens.token_ids[sequence.tokens],
                candidate_ids=next(candidates),
                hidden=hidden_TH,
                hidden_dtype=hidden_dtype,
                weights=weights_T,
                steps=None if self._steps is None else self._steps.of(sequence.key),
                batch_sizes=sizes_T,
                arrival=sequence.arrival,
            )
            for sequence, request, (hidden_TH, hidden_dtype), weights_T, sizes_T in zip(
                window, merged, hidden, weights, sizes, strict=False
            )
        ]

    def _sizes(self, known: BatchSizes, window: list[PlannedSequence]) -> Iterator[npt.NDArray[np.int32]]:
        steps = self._tokens.steps([sequence.tokens for sequence in window])
        return (known.of(sequence.key[0], steps_T) for sequence, steps_T in zip(window, steps, strict=True))


def _by_run(window: list[PlannedSequence]) -> list[list[PlannedSequence]]:
    groups: dict[str, list[PlannedSequence]] = {}
    for sequence in window:
        groups.setdefault(sequence.key[0], []).append(sequence)
    return list(groups.values())


def cut_batches(lengths: list[int], limits: BatchLimits) -> Iterator[list[int]]:
    """Yields indices of sequences, longest first, so that no batch exceeds its limits.

    The longest come first so that what does not fit into memory fails at once, and time left is overestimated
    rather than underestimated.
    """
    batch: list[int] = []
    num_tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        num_tokens += lengths[index]
        is_full = limits.num_sequences is not None and len(batch) == limits.num_sequences
        if batch and (is_full or (limits.num_tokens is not None and num_tokens > limits.num_tokens)):
            yield batch
            batch, num_tokens = [], lengths[index]
        batch.append(index)
    if batch:
        yield batch
