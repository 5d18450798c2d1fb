"""k3 against exact decimal arithmetic."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from pathlib import Path

import pytest

from factories import make_trace
from tracekit import connect

DIFFERENCES = [sign * mantissa * 10.0**-power for power in range(13) for mantissa in (1, 3, 9.99) for sign in (1, -1)]


def exact_k3(d: float) -> float:
    with localcontext() as context:
        context.prec = 80
        exact = Decimal(d)
        return float(exact.exp() - 1 - exact)


def test_k3_is_accurate_for_large_and_small_differences(tmp_path: Path) -> None:
    values = [*DIFFERENCES, 0.1, -0.1, math.nextafter(0.1, 0), 40.0, -700.0]
    with connect(make_trace(tmp_path / "a")) as session:
        found = [value for (value,) in session.sql("SELECT k3(unnest($1::DOUBLE[]))", [values]).rows()]
    assert found == pytest.approx([exact_k3(value) for value in values], rel=1e-12, abs=0)


def test_k3_of_what_is_not_finite(tmp_path: Path) -> None:
    values = [math.inf, -math.inf, 1000.0, 0.0, math.nan]
    with connect(make_trace(tmp_path / "a")) as session:
        *found, last = [value for (value,) in session.sql("SELECT k3(unnest($1::DOUBLE[]))", [values]).rows()]
    assert found == [math.inf, math.inf, math.inf, 0.0]
    assert math.isnan(last)
