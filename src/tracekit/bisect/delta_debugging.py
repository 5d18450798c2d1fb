"""Delta debugging: the fewest of some items that still show what all of them show."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def fewest(items: Sequence[T], shows: Callable[[Sequence[T]], bool]) -> list[T]:
    """Returns items of which none can be left out.

    Zeller and Hildebrandt's ddmin ("Simplifying and Isolating Failure-Inducing Input", 2002).

    Args:
        items: they show it together.
        shows: whether some of them do.
    """
    left = list(items)
    num_pieces = 2
    while len(left) > 1:
        pieces = _cut(left, num_pieces)
        fewer = next((piece for piece in pieces if shows(piece)), None)
        if fewer is not None:
            left, num_pieces = fewer, 2
            continue
        others = [[item for other in pieces if other is not piece for item in other] for piece in pieces]
        fewer = next((rest for rest in others if num_pieces > 2 and shows(rest)), None)
        if fewer is not None:
            left, num_pieces = fewer, max(num_pieces - 1, 2)
        elif num_pieces >= len(left):
            break
        else:
            num_pieces = min(2 * num_pieces, len(left))
    return left


def _cut(items: list[T], num_pieces: int) -> list[list[T]]:
    bounds = [len(items) * number // num_pieces for number in range(num_pieces + 1)]
    return [items[start:stop] for start, stop in itertools.pairwise(bounds)]
