"""The contract of a factor, and the registry that finds one by name.

A factor is a module of this folder, or of another package that names it in the entry-point group `tracekit.factors`. It
has one attribute, `FACTOR`, which is as `Factor` describes it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from tracekit.errors import ConfigError, nearest

ENTRY_POINTS = "tracekit.factors"

# The order in which they are tried where no order is asked for: what is known to matter most comes first.
_FIRST = ("engine", "dtype", "head", "attention", "mode", "batch", "cache")

Run = Mapping[str, Any]
"""A row of `runs`, merged over the processes of one run, and `num_steps`: how many steps the trace tells of."""


class Factor(Protocol):
    """One thing that replays can do in several ways, its levels.

    Attributes:
        title: what it is, for people.
        backends: the replay backends that can vary it.
        is_pinned: whether replays are given its first level where it is not varied; else the backend's own default.
    """

    title: str
    backends: Collection[str]
    is_pinned: bool

    def levels(self, runs: Sequence[Run], backend: str) -> tuple[str, ...]:
        """Returns the levels that are tried where none are named.

        Args:
            runs: what the recorded side says of itself.
            backend: the replay backend.

        Returns:
            First the level that is nearest to what the runs say. A factor that has no others to suggest returns it
            alone, and one that cannot know its own returns nothing.
        """
        ...

    def options(self, level: str, backend: str) -> Mapping[str, Any]:
        """Returns the options of a replay at a level; 'backend' among them names another backend.

        Raises:
            ConfigError: there is no such level on this backend.
        """
        ...

    # A factor may also have `is_taken(level, runs) -> bool`: whether a replay's runs say that it was made at a level.


def factor_names() -> list[str]:
    """Returns the names of all factors, loading none."""
    own = [found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]) if found.name not in _NO_FACTORS]
    others = {point.name for point in entry_points(group=ENTRY_POINTS)}
    return sorted({*own, *others}, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))


def load_factor(name: str) -> Factor:
    """Returns a factor.

    Raises:
        ConfigError: there is none of this name.
    """
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            theirs: Factor = point.load()
            return theirs
    if name not in factor_names():
        raise ConfigError(f"there is no factor '{name}'{nearest(name, factor_names())}")
    factor: Factor = importlib.import_module(f"{__package__}.{name}").FACTOR
    return factor


def factors_of(backend: str) -> dict[str, Factor]:
    """Returns the factors that a backend can vary."""
    found = {name: load_factor(name) for name in factor_names()}
    return {name: factor for name, factor in found.items() if backend in factor.backends}


def said(runs: Sequence[Run], column: str) -> Any:
    """Returns what runs say in a column: the first value that is not null."""
    return next((run[column] for run in runs if run.get(column) is not None), None)


def is_taken(factor: Factor, level: str, runs: Sequence[Run]) -> bool:
    """Returns whether a replay was made at a level; an engine may pass over a setting that it does not know."""
    asked = getattr(factor, "is_taken", None)
    return asked is None or bool(asked(level, runs))


def known_level(factor: str, level: str, known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Returns a level's options.

    Raises:
        ConfigError: there is no such level.
    """
    if level not in known:
        raise ConfigError(f"factor '{factor}' has no level '{level}'{nearest(level, known)}")
    return known[level]


_NO_FACTORS = ("base", "engine_switch")
