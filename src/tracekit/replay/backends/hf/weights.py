"""Weights that change while sequences are decoded, as they did in the recording."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tracekit.errors import ModelError
from tracekit.replay.backends.base import Rows, Sequence
from tracekit.replay.backends.hf.pieces import Int64Array
from tracekit.replay.backends.hf.split import SplitModel, by_group


class RecordedSchedule:
    """Scores each token under the weights that it was sampled under.

    Args:
        split: the model; it has the first of the weights already.
        checkpoints: by label, or by the number of the version, the folder of its checkpoint.
        load: loads a model from a folder.
        clears: whether a change clears the KV cache.
    """

    def __init__(
        self, split: SplitModel, checkpoints: Mapping[str, Path], load: Callable[[Path], Any], *, clears: bool
    ) -> None:
        self.clears = clears
        self._split = split
        self._labels = list(checkpoints)
        self._checkpoints = checkpoints
        self._load = load
        self._loaded = 0
        # Of all weights since the last batch: logits are made when all of its tokens have been read.
        self._heads = {0: split.head_weights()}

    def begin(self) -> None:
        """Forgets what the batch before needed."""
        self._heads = {self._loaded: self._heads[self._loaded]}

    def logits(self, hidden_RH: torch.Tensor, weights_R: Int64Array) -> torch.Tensor:
        """Returns the logits [R, V] of rows, each under its weights."""
        return by_group(
            hidden_RH, weights_R, lambda rows_RH, weights: self._split.logits(rows_RH, self._heads[weights])
        )

    def of(self, sequence: Sequence) -> Int64Array:
        """Returns for each output token which of the checkpoints it is scored under.

        Raises:
            ModelError: there is none for a token.
        """
        assert sequence.weights is not None
        return np.array([self._number(sequence, *weights) for weights in sequence.weights], np.int64)

    def _number(self, sequence: Sequence, version: int | None, label: str | None) -> int:
        for name in (label, None if version is None else str(version)):
            if name in self._labels:
                return self._labels.index(name)
        if version is None and label is None:
            raise ModelError(
                f"request '{sequence.request_id}' has tokens whose weights are not recorded, so there is no schedule"
            )
        raise ModelError(
            f"request '{sequence.request_id}' has tokens of weight version {version} ('{label}'), but --weights names "
            f"{', '.join(self._labels)}; add --weights {version}=PATH"
        )

    def load(self, weights: int) -> None:
        """Gives the model the weights of a checkpoint, where it has others."""
        if weights != self._loaded:
            self._split.change_weights(self._load(self._checkpoints[self._labels[weights]]))
            self._loaded = weights
            self._heads[weights] = self._split.head_weights()


def with_weights(rows: Rows, *, clears: bool) -> Rows:
    """Returns rows of tokens with the weights they were scored under, those of the recording, and their KV entries'."""
    if rows.sequence.weights is None:
        return rows
    versions, labels = zip(*rows.sequence.weights, strict=True)
    is_known = None not in versions
    oldest = versions if clears or not is_known else itertools.accumulate(versions, min)
    weights = {
        "weight_version": list(versions),
        "weight_label": list(labels),
        "kv_weight_version_min": list(oldest) if is_known else [None] * len(versions),
    }
    return replace(rows, columns={**rows.columns, **weights})
