"""Shares of a difference, against sums of fractions and of Python's own floats."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tracekit.bisect.delta_debugging import fewest
from tracekit.bisect.shares import NOTHING, means, share

D = [0.5, -0.25, 0.0, 2.0, -1.5, 0.125]
PARTS = [[0.25, -0.25, 0.5, 1.0, 0.5, 0.0], [0.5, 0.0, -0.5, 0.75, -2.5, 0.125], [-0.25, 0.0, 0.0, 0.25, 0.5, 0.0]]


def test_k2_and_abs_are_sums_of_fractions() -> None:
    d = [Fraction(value) for value in D]
    for part in PARTS:
        found = share(np.array(part), np.array(D))
        delta = [Fraction(value) for value in part]
        k2 = sum(x * y for x, y in zip(delta, d, strict=True)) / sum(y * y for y in d)
        signs = [(y > 0) - (y < 0) for y in d]
        absolute = sum(x * sign for x, sign in zip(delta, signs, strict=True)) / sum(map(abs, d))
        assert (found.k2, found.abs) == (pytest.approx(float(k2)), pytest.approx(float(absolute)))


def test_k3_weighs_each_token_by_its_own_slope() -> None:
    k3 = [math.exp(y) - 1 - y for y in D]
    for part in PARTS:
        expected = math.fsum(x * v / y for x, y, v in zip(part, D, k3, strict=True) if y) / math.fsum(k3)
        assert share(np.array(part), np.array(D)).k3 == pytest.approx(expected, rel=1e-12)


def test_parts_of_a_difference_have_shares_that_add_up_to_one() -> None:
    assert np.sum(PARTS, axis=0).tolist() == D
    total = NOTHING
    for part in PARTS:
        total += share(np.array(part), np.array(D))
    assert (total.k2, total.k3, total.abs) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))


def test_means() -> None:
    found = means(np.array(D))
    assert found.k2 == pytest.approx(sum(y * y for y in D) / 2 / len(D))
    assert found.k3 == pytest.approx(sum(math.exp(y) - 1 - y for y in D) / len(D))
    assert found.abs == pytest.approx(sum(abs(y) for y in D) / len(D))


def test_where_nothing_differs_nothing_has_a_share() -> None:
    assert share(np.array([1.0, 2.0]), np.zeros(2)) == means(np.zeros(0)) == NOTHING


@pytest.mark.parametrize("needed", [{3}, {0, 15}, {2, 7, 11}, set(range(16))])
def test_the_fewest_items_are_those_that_are_needed(needed: set[int]) -> None:
    asked = []

    def shows(items: object) -> bool:
        asked.append(items)
        return needed <= set(items)  # type: ignore[call-overload]

    assert set(fewest(range(16), shows)) == needed
    # As the paper has it: at most n² + 3n.
    assert len(asked) <= 16 * 16 + 3 * 16
