"""Finds causes: those of this package, and those that others register."""

from __future__ import annotations

from importlib.metadata import entry_points

from tracekit.analysis.explain.base import Cause
from tracekit.errors import ConfigError

ENTRY_POINTS = "tracekit.causes"


def causes() -> list[Cause]:
    """Returns one of each cause, on the way from the client to the weights.

    Raises:
        ConfigError: an entry point of the group cannot be loaded, or is no cause; names it.
    """
    found = []
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            cause = entry.load()()
        except Exception as error:
            raise ConfigError(f"the cause '{entry.name}' ({entry.value}) cannot be loaded: {error}") from error
        if not callable(getattr(cause, "claim", None)) or not getattr(cause, "name", ""):
            raise ConfigError(
                f"the entry point '{entry.name}' ({entry.value}) of {ENTRY_POINTS} makes no cause: see docs/explain.md"
            )
        found.append(cause)
    return sorted(found, key=lambda cause: (cause.rung, cause.name))
