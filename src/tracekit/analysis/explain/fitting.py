"""Finds the one number of a curve that brings A's values nearest to B's, on a sample of tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import Question
from tracekit.analysis.explain.queries import query
from tracekit.analysis.explain.tokens import Floats, Integers

NUM_SAMPLED = 4000
_CAP = 1.0
_GOLDEN = (np.sqrt(5) - 1) / 2
_ROUNDS = 22
_NEAR_ONE = 0.01


@dataclass(frozen=True)
class Sample:
    """At most `NUM_SAMPLED` = M compared tokens with A's candidates.

    Attributes:
        row: int64 [M], which of the compared tokens they are.
        columns: by name, float64 [M]; NaN where null.
        logits: float64 [M, K], A's candidates, the largest first; -inf where there are fewer.
        residual: float64 [M] in nat.
    """

    row: Integers
    columns: dict[str, Floats]
    logits: Floats
    residual: Floats

    @classmethod
    def of(cls, question: Question) -> Sample | None:
        """Draws tokens of tested requests that are not greedy; None where there is none."""
        tokens = question.tokens
        connection = tokens.connection
        chosen = np.flatnonzero(question.chosen[tokens.request] & tokens.finite)
        chosen = np.sort(np.random.default_rng(0).choice(chosen, min(len(chosen), NUM_SAMPLED), replace=False))
        connection.register("_chosen", {"place": tokens.place[chosen]})
        table = connection.sql(query("sample")).to_arrow_table()
        connection.unregister("_chosen")
        if not table.num_rows:
            return None
        columns = {
            name: np.asarray(table[name].cast("double").to_numpy(zero_copy_only=False), np.float64)
            for name in table.column_names
            if name not in ("place", "logits")
        }
        row = np.searchsorted(tokens.place, table["place"].to_numpy())
        lists = table["logits"].combine_chunks()
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        logits = np.full((len(row), int(lengths.max())), -np.inf)
        logits[np.arange(logits.shape[1]) < lengths[:, None]] = lists.flatten().to_numpy(zero_copy_only=False)
        return cls(row, columns, logits, question.residual[row])

    def scaled(self, scale: Floats | float) -> Floats:
        """Returns logprobs of logits times a scale, [M].

        What the macro `logprob_scaled` returns, brought to what was recorded at the temperature of the request, and in
        proportion between there and a scale of 1.
        """
        scale = np.broadcast_to(np.asarray(scale, np.float64), self.residual.shape)
        return self._from_candidates(scale) + self._error_by_scale * (scale - 1)

    @functools.cached_property
    def _error_by_scale(self) -> Floats:
        of = self.columns
        scale = 1 / of["temperature"]
        recorded = of["a_processed"] + np.nan_to_num(np.log(of["a_kept_mass"]))
        known = np.isfinite(recorded) & (of["is_penalised"] == 0) & (np.abs(scale - 1) > _NEAR_ONE)
        error = np.where(known, recorded, 0.0) - self._from_candidates(scale)
        return np.where(known, error / np.where(known, scale - 1, 1.0), 0.0)

    def _from_candidates(self, scale: Floats) -> Floats:
        of = self.columns
        last = np.min(np.where(np.isfinite(self.logits), self.logits, np.inf), axis=1)
        h, below = scale - 1, last - of["rest_mean"]
        bend = np.square(below) / 4
        to_0 = of["rest_norm"] - of["rest_mean"] + bend - of["rest_size"]
        gamma = of["rest_norm"] + h * last - 2 * np.log1p(np.maximum(h, 0) * below / 2)
        rest = np.where(h >= 0, gamma, of["rest_norm"] + h * (of["rest_mean"] + h * (bend + h * to_0)))
        mapped = np.concatenate([self.logits * scale[:, None], rest[:, None]], axis=1)
        largest = mapped.max(axis=1)
        norm = largest + np.log(np.exp(mapped - largest[:, None]).sum(axis=1))
        return np.asarray(of["logit"] * scale - norm)

    def left(self, delta: Floats) -> float:
        """Returns the mean of what a contribution leaves of the residuals, in nat, each counted up to 1.

        An offset of the kept mass, either way, is not held against it: that is truncation's.
        """
        kept = np.nan_to_num(np.log(self.columns["a_kept_mass"]))
        offsets = (0.0, 1.0, -1.0) if np.any(kept != 0) else (0.0,)
        return min(float(np.mean(np.minimum(np.abs(self.residual - delta + sign * kept), _CAP))) for sign in offsets)


def best_value(grid: Floats, loss: Callable[[float], float]) -> tuple[float, float]:
    """Returns the value, and the loss there: the best of a grid, refined by golden sections of its neighbourhood.

    Args:
        grid: float64 [G], rising and positive; refined on a logarithmic scale.
        loss: what is to be small.
    """
    losses = [loss(float(value)) for value in grid]
    best = int(np.argmin(losses))
    low, high = np.log(grid[max(best - 1, 0)]), np.log(grid[min(best + 1, len(grid) - 1)])
    for _ in range(_ROUNDS):
        first, second = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if loss(float(np.exp(first))) < loss(float(np.exp(second))):
            high = second
        else:
            low = first
    found = float(np.exp((low + high) / 2))
    return min(((found, loss(found)), (float(grid[best]), losses[best])), key=lambda pair: pair[1])
