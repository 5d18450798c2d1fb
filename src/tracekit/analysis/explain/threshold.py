"""Causes that touch tokens from some value of a column on: all thresholds are tried, inside one test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import Cause, Claim, Question, Variant
from tracekit.analysis.explain.contrast import excess_of, sizes_of
from tracekit.analysis.explain.significance import Within
from tracekit.analysis.explain.tokens import Bools, Floats, Integers

# An edge that may lie anywhere fits some part of any growth.
_FREEDOM = 0.85


@dataclass(frozen=True)
class Thresholds:
    """Edges of a column, and what lies below each.

    Attributes:
        column: float64 [N].
        edges: float64 [S], rising; the tokens touched have at least an edge.
        tested, chosen: what lies between edges, of the requests that claims are tested on, and choose by.
        below: whether those with less are touched instead.
    """

    column: Floats
    edges: Floats
    tested: _Cells
    chosen: _Cells
    below: bool = False

    @classmethod
    def of(cls, question: Question, name: str, most: int) -> Thresholds | None:
        """Takes every value of a column but the lowest for an edge, or so many quantiles; None where there is none."""
        column = question.tokens[name]
        edges = question.tokens.once(("edges", name, most), lambda: _edges(column[question.tokens.finite], most))
        if not len(edges):
            return None
        tested = _Cells.of(question, column, edges, question.tested)
        is_same = np.array_equal(question.tested, question.chosen)
        chosen = tested if is_same else _Cells.of(question, column, edges, question.chosen)
        return cls(column, edges, tested, chosen)

    def touched(self, edge: float) -> np.ndarray:
        return np.asarray(self.column < edge if self.below else self.column >= edge)


def _edges(values: Floats, most: int) -> Floats:
    edges = np.unique(values[~np.isnan(values)])[1:]
    if len(edges) > most:
        edges = np.unique(np.quantile(edges, np.linspace(0, 1, most), method="nearest"))
    return edges


@dataclass(frozen=True)
class _Cells:
    """Sums and counts of scores by request and by interval between edges, float64 [R, S + 1]."""

    sums: Floats
    counts: Floats

    @classmethod
    def of(cls, question: Question, column: Floats, edges: Floats, requests: Bools) -> _Cells:
        tokens = question.tokens
        usable = tokens.finite & ~np.isnan(column) & requests[tokens.request]
        width = len(edges) + 1
        level: Integers = np.searchsorted(edges, column[usable], side="right")
        row = np.cumsum(requests) - 1
        num_rows = int(np.sum(requests))
        cell = row[tokens.request[usable]] * width + level
        size, shape = num_rows * width, (num_rows, width)
        sums = np.bincount(cell, question.score[usable], size).reshape(shape).astype(np.float64)
        return cls(sums, np.bincount(cell, minlength=size).reshape(shape).astype(np.float64))

    def scores(self) -> Floats:
        """Returns what each request adds to the covariance of scores and of lying at or above an edge, [S, R].

        Requests with tokens on both sides of an edge tell, and so do those that lie on one side. To draw the signs of
        such sums is the wild cluster bootstrap (Cameron, Gelbach and Miller, 2008).
        """
        total = max(float(self.counts.sum()), 1.0)
        centred = self.sums - self.counts * (self.sums.sum() / total)
        high = np.cumsum(centred[:, ::-1], axis=1)[:, ::-1][:, 1:]
        share = np.cumsum(self.counts.sum(axis=0)[::-1])[::-1][1:] / total
        return np.asarray((high - share * centred.sum(axis=1)[:, None]).T)

    def scores_within(self) -> Floats:
        """Returns the part of it that lies within requests, [S, R]: only those with tokens on both sides tell.

        Where few requests have such an edge inside, how unlike each other requests are drowns it in the whole.
        """
        high, num_high = (np.cumsum(of[:, ::-1], axis=1)[:, ::-1][:, 1:] for of in (self.sums, self.counts))
        total, num = self.sums.sum(axis=1)[:, None], self.counts.sum(axis=1)[:, None]
        return np.asarray((high - num_high * total / np.maximum(num, 1)).T)


def by_threshold(
    cause: Cause,
    question: Question,
    thresholds: Thresholds,
    describe: Callable[[float], tuple[dict[str, object], str]],
) -> Claim:
    """Claims that tokens differ more from one of the edges on: the one that fits all tokens best.

    Args:
        cause: whose claim it is.
        question: what it is asked.
        thresholds: what is tried.
        describe: returns parameters and query for an edge.
    """
    sign = -1.0 if thresholds.below else 1.0
    cells = thresholds.tested
    test = Within(sign * np.concatenate([cells.scores(), cells.scores_within()]))
    fits = _fits(thresholds.chosen, sign)
    edge = float(thresholds.edges[int(np.argmax(fits))])

    def variant(_: int) -> Variant:
        parameters, query = describe(edge)
        mask = thresholds.touched(edge)
        return Variant.of_excess(
            {**parameters, **sizes_of(question, mask)}, query, excess_of(question, mask) * mask.astype(np.float64)
        )

    return Claim(cause, test, variant, fit=_FREEDOM * float(np.max(fits)))


def _fits(cells: _Cells, sign: float) -> Floats:
    """Returns the sum of squares that a step at each edge explains, [S]; 0 for a step the wrong way."""
    sums, counts = np.cumsum(cells.sums.sum(axis=0)), np.cumsum(cells.counts.sum(axis=0))
    low, num_low = sums[:-1], counts[:-1]
    high, num_high = sums[-1] - low, counts[-1] - num_low
    step = sign * (high / np.maximum(num_high, 1) - low / np.maximum(num_low, 1))
    weight = num_low * num_high / np.maximum(counts[-1], 1)
    return np.asarray(np.where(step > 0, step * step * weight, 0.0))
