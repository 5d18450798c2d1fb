"""One trial: requests drawn at random, faults planted into them, two traces written, and what is true of them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from base import FORCED, REFERENCE, Base, Pair, Plant
from numpy.random import Generator
from side import Key, Side
from writing import write

# Of requests in which a fault can show, a trial has at least so many.
FEWEST = 8
# What each of two planted causes carries of k2 at least.
LEAST_SHARE = 0.1
_MOST_TRIES = 5


@dataclass(frozen=True)
class Expected:
    """What should be found.

    Attributes:
        plant: the plant's name.
        cause, names: the cause, and all names that count as right.
        share: of k2, from the contributions that were planted; None for a fault that shows in tokens, not in d.
        parameters: what should be estimated.
    """

    plant: str
    cause: str
    names: tuple[str, ...]
    share: float | None
    parameters: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """Traces of a trial, and what should be found in them."""

    a: Path
    b: Path
    null: Path | None
    expected: tuple[Expected, ...]
    num_tokens: int
    # Root mean square of d.
    size: float


def planted(base: Base, plants: Sequence[Plant], chance: Generator, folder: Path) -> Trial:
    """Makes a trial with some plants in it.

    Raises:
        ValueError: they cannot show beside each other.
    """
    plants = sorted(plants, key=lambda plant: plant.stage)
    names = _draw(base, plants, chance)
    copy = any(plant.base == "self" for plant in plants)
    a, b = Side(base[REFERENCE], names), Side(base[REFERENCE if copy else FORCED], names)
    pair = Pair(a, b, base)
    expected, before, contributions = [], pair.differences(), []
    for plant in plants:
        for truth in plant.plant(pair, chance):
            after = pair.differences()
            contributions.append({key: after[key] - before[key] for key in after})
            names_right = tuple(dict.fromkeys((truth.cause, *plant.also)))
            expected.append((plant, truth, names_right))
            before = after
    d = _compared(pair, before)
    shares = [
        None if plant.is_fork else _share(delta, d)
        for (plant, _, _), delta in zip(expected, contributions, strict=True)
    ]
    manifest = write(a, folder / "a", "record", None)
    write(b, folder / "b", pair.role, manifest)
    # A repeat of a run whose rows are off would be off too.
    is_off = a.changes or any("processed_logprob" in row for row in a.token.values())
    null = None if is_off or not base.repeats else folder / "null"
    if null:
        write(Side(base[str(chance.choice(base.repeats))], names), null, "record", None)
    return Trial(
        folder / "a",
        folder / "b",
        null,
        tuple(
            Expected(plant.name, truth.cause, right, share, dict(truth.parameters))
            for (plant, truth, right), share in zip(expected, shares, strict=True)
        ),
        len(d),
        math.sqrt(sum(value * value for value in d.values()) / max(1, len(d))),
    )


def paired(base: Base, plants: Sequence[Plant], chance: Generator, folder: Path) -> Trial:
    """Makes a trial of two plants, at strengths at which each is a part of the difference that can be told.

    Raises:
        ValueError: none was found.
    """
    for number in range(_MOST_TRIES):
        trial = planted(base, plants, chance, folder / str(number))
        if all(expected.share is not None and expected.share >= LEAST_SHARE for expected in trial.expected):
            return trial
        shutil.rmtree(folder / str(number))
    raise ValueError(
        f"no strengths at which {' and '.join(plant.name for plant in plants)} both have {LEAST_SHARE:.0%}"
    )


def repeated(base: Base, chance: Generator, folder: Path, num_requests: int = 60) -> Trial:
    """Makes a trial of two runs that differ in nothing but batches and chance, and a third one as the null."""
    first, second, null = (str(name) for name in chance.permutation([REFERENCE, FORCED, *base.repeats])[:3])
    everything = sorted(base[REFERENCE].requests)
    names = [str(name) for name in chance.choice(everything, min(num_requests, len(everything)), replace=False)]
    a, b = Side(base[first], names), Side(base[second], names)
    for side, name in ((a, "a"), (b, "b"), (Side(base[null], names), "null")):
        write(side, folder / name, "record", None)
    d = _compared(Pair(a, b, base), Pair(a, b, base).differences())
    size = math.sqrt(sum(value * value for value in d.values()) / max(1, len(d)))
    return Trial(folder / "a", folder / "b", folder / "null", (), len(d), size)


def compatible(base: Base, plants: Sequence[Plant]) -> bool:
    """Whether plants can be put in beside each other, so that each can be told."""
    first, second = plants
    if not (first.in_pairs and second.in_pairs) or first.base != second.base:
        return False
    if {first.cause, *first.also} & {second.cause, *second.also} or (
        first.stage == second.stage and first.alone_in_stage
    ):
        return False
    wanted = [row for row in base[REFERENCE].requests.values() if all(plant.wants(row) for plant in plants)]
    return all(sum(plant.shows(row) for row in wanted) >= FEWEST for plant in plants)


def _draw(base: Base, plants: Iterable[Plant], chance: Generator) -> list[str]:
    plants = list(plants)
    requests = base[REFERENCE].requests
    wanted = sorted(name for name, row in requests.items() if all(plant.wants(row) for plant in plants))
    num = min(min(plant.num_requests for plant in plants), len(wanted))
    for _ in range(100):
        names = [str(name) for name in chance.choice(wanted, num, replace=False)]
        if all(sum(plant.shows(requests[name]) for name in names) >= min(FEWEST, num) for plant in plants):
            return names
    raise ValueError(f"too few requests in which {', '.join(plant.name for plant in plants)} can show")


def _compared(pair: Pair, d: dict[Key, float]) -> dict[Key, float]:
    """Returns d of the tokens before each request's first difference, where it is finite."""
    a, b = pair.a.tokens(), pair.b.tokens()
    found = {}
    for name in pair.a.names:
        ends = [side.outcome.get(name, {}).get("num_output_tokens", math.inf) for side in (pair.a, pair.b)]
        for index in range(len(pair.a.recording.tokens[name])):
            key = (name, index)
            if key not in d or index >= min(ends) or a[key]["token_id"] != b[key]["token_id"]:
                break
            if np.isfinite(d[key]):
                found[key] = d[key]
    return found


def _share(delta: dict[Key, float], d: dict[Key, float]) -> float:
    total = sum(value * value for value in d.values())
    finite = (key for key in d if np.isfinite(delta[key]))
    return sum(delta[key] * d[key] for key in finite) / total if total else 0.0
