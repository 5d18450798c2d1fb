"""The figures of a comparison, each with its interval and the noise floor it is held against."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tracekit.analysis.session import Session
from tracekit.errors import InputError

MEASURED = "measured"
MODEL = "model"
# The basis of shares of requests.
REQUESTS = "requests"

_INTERVALS = (
    "SELECT i.*, d.neutral, d.headline, d.unit FROM metric_intervals AS i JOIN metric_definitions AS d USING (name)"
    " ORDER BY i.basis = 'processed', d.place"
)
# The 97.5% quantile of the normal distribution.
_Z = 1.959963984540054
# How many times as far as repeats a figure may be and yet be noise, however wide its interval: where one request of a
# few is broken, the resamples without it are like repeats, and the interval reaches down to them.
_FARTHEST = 3.0


@dataclass(frozen=True)
class Figure:
    """One figure of a comparison.

    Attributes:
        basis: raw or processed, as in the view `metrics`; requests for shares of requests.
        name: of the metric.
        value: the figure; None where there is nothing to take it from.
        low, high: its 95% interval; None where there is none.
        reliable: whether such intervals cover what they claim; None where there is none.
        num_tokens, num_sequences: what it is taken from.
        largest: the largest single term of a mean.
        descriptive: True where it does not estimate what its name says.
        unit: as in `metric_definitions`.
        headline: whether reports show it unasked.
        neutral: its value for equal traces; None where there is no such value.
        floor: the value of repeats that is farthest from neutral; None where nothing is known of it.
        floor_source: 'measured' (between repeats) or 'model' (what one bf16 step implies).
        floor_low, floor_high: the 95% interval of a measured floor; None where there is none.
    """

    basis: str
    name: str
    value: float | None
    low: float | None
    high: float | None
    reliable: bool | None
    num_tokens: int
    num_sequences: int
    largest: float | None
    descriptive: bool
    unit: str
    headline: bool
    neutral: float | None
    floor: float | None = None
    floor_source: str | None = None
    floor_low: float | None = None
    floor_high: float | None = None

    @property
    def within_floor(self) -> bool | None:
        """Whether repeats may be as far from neutral as it is; None where that cannot be said.

        It is where it is no farther than they are, or where both intervals have values in common at such distances:
        of two figures of noise alone, one is the larger half of the time. No figure but a share of requests, whose
        interval does not come from resampling, is within the floor where it is more than three times as far.
        """
        if self.value is None or self.floor is None or self.neutral is None:
            return None
        distance, of_floor = abs(self.value - self.neutral), abs(self.floor - self.neutral)
        if distance <= of_floor:
            return True
        if self.low is None or self.high is None or self.floor_low is None or self.floor_high is None:
            return False
        nearest = max(self.low - self.neutral, self.neutral - self.high, 0.0)
        farthest = max(self.floor_high - self.neutral, self.neutral - self.floor_low)
        return nearest <= farthest and (self.basis == REQUESTS or distance <= _FARTHEST * of_floor)


def figures(session: Session, nulls: Iterable[Session] = ()) -> list[Figure]:
    """Returns all figures of a session over two traces.

    Args:
        session: the comparison.
        nulls: comparisons between repeats of A's run, which measure the noise floor. Without one, the floor is the
            model of the view `modelled_floor`, where that says something.
    """
    found = _figures(session)
    repeats = [{(figure.basis, figure.name): figure for figure in _figures(null)} for null in nulls]
    if repeats:
        return [_measured(figure, repeats) for figure in found]
    model = {(row["basis"], row["name"]): row["value"] for row in session.sql("FROM modelled_floor").dicts()}
    return [
        replace(figure, floor=model[key], floor_source=MODEL)
        if (key := (figure.basis, figure.name)) in model
        else figure
        for figure in found
    ]


def null_sessions(traces: Sequence[Any], open_pair: Callable[[Any, Any], Session]) -> list[Session]:
    """Opens every pair of repeats: A and its nulls, each with each.

    Args:
        traces: A and its repeats.
        open_pair: opens two of them.
    """
    opened: list[Session] = []
    try:
        opened.extend(open_pair(first, second) for first, second in itertools.combinations(traces, 2))
    except BaseException:
        for session in opened:
            session.close()
        raise
    return opened


def _figures(session: Session) -> list[Figure]:
    if session.b is None:
        raise InputError("figures compare two traces, and only one was given; give another one")
    columns = Figure.__dataclass_fields__
    rows = session.sql(_INTERVALS).dicts()
    found = [Figure(**{name: value for name, value in row.items() if name in columns}) for row in rows]
    ((num_token, num_argmax, num_none),) = session.sql(
        "SELECT num_token, num_argmax, num_none FROM _divergence_summary"
    ).rows()
    num = num_token + num_argmax + num_none
    return [
        *found,
        _share("first_divergence_rate", num_token + num_argmax, num),
        _share("token_divergence_rate", num_token, num),
    ]


def _share(name: str, num: int, of: int) -> Figure:
    """Returns a share of requests with Wilson's score interval."""
    value = num / of if of else None
    low = high = None
    if value is not None:
        middle = (value + _Z**2 / (2 * of)) / (1 + _Z**2 / of)
        half = _Z / (1 + _Z**2 / of) * math.sqrt(value * (1 - value) / of + _Z**2 / (4 * of**2))
        low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Figure(
        REQUESTS, name, value, low, high, None if value is None else True, 0, of, None, False, "share", False, 0.0
    )


def _measured(figure: Figure, repeats: Sequence[Mapping[tuple[str, str], Figure]]) -> Figure:
    if figure.neutral is None:
        return figure
    neutral = figure.neutral
    distances = [
        (abs(repeat.value - neutral), repeat)
        for repeat in (found[figure.basis, figure.name] for found in repeats)
        if repeat.value is not None
    ]
    if not distances:
        return figure
    _, farthest = max(distances, key=operator.itemgetter(0))
    return replace(
        figure, floor=farthest.value, floor_source=MEASURED, floor_low=farthest.low, floor_high=farthest.high
    )
