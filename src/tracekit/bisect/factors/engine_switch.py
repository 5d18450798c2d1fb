"""A factor that is an argument of vLLM's engine, on or off."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracekit.bisect.factors.base import Run, known_level, said


@dataclass(frozen=True)
class EngineSwitch:
    """Such a factor.

    Attributes:
        name: of the factor.
        title: for people.
        argument: of the engine.
        column: of `runs`, which says how the recording had it.
    """

    name: str
    title: str
    argument: str
    column: str
    backends: Collection[str] = ("vllm",)
    # The backend takes it over from a recording of the same release; others may not have the argument.
    is_pinned: bool = False

    def levels(self, runs: Sequence[Run], backend: str) -> tuple[str, ...]:  # noqa: ARG002
        return ("on", "off") if said(runs, self.column) else ("off", "on")

    def options(self, level: str, backend: str) -> Mapping[str, Any]:  # noqa: ARG002
        values = {"off": "false", "on": "true"}
        known = {name: {"engine_arg": (f"{self.argument}={value}",)} for name, value in values.items()}
        return known_level(self.name, level, known)

    def is_taken(self, level: str, runs: Sequence[Run]) -> bool:
        found = said(runs, self.column)
        return found is None or bool(found) == (level == "on")
