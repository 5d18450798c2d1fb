"""The replays that a bisection has made so far, and how far each is from A and B."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

from tracekit.bisect.plan import Plan
from tracekit.bisect.result import Step
from tracekit.bisect.settings import Setting
from tracekit.bisect.shares import Amounts, means
from tracekit.errors import BackendUnavailableError, ConfigError, ModelError
from tracekit.replay import Progress

BASELINE = Setting().label


class Watcher(Protocol):
    """Is told how far a bisection is."""

    def begins(self, label: str, *, is_there: bool) -> Callable[[Progress], None] | None:
        """A replay is needed, and may be there; returns what is told its progress."""
        ...

    def ends(self, step: Step, left: float | None) -> None:
        """It has ended; `left` is what part of the difference to B it leaves, in k2."""
        ...


class Runs:
    """Makes replays when they are first needed.

    Args:
        plan: what they are of.
        watcher: is told of each.
    """

    def __init__(self, plan: Plan, watcher: Watcher | None = None) -> None:
        self.plan = plan
        self.scores = plan.scores
        self._space = plan.replays.space
        self._watcher = watcher
        self._steps: dict[Setting, Step] = {}

    def make(self, changes: Mapping[str, str]) -> str:
        """Returns the label of a setting, by which its scores are known.

        Raises:
            ConfigError, ModelError, BackendUnavailableError: it cannot be replayed.
        """
        setting = self._space.setting(changes)
        if setting not in self._steps:
            replays, progress = self.plan.replays, None
            if self._watcher is not None:
                progress = self._watcher.begins(setting.label, is_there=replays.is_there(setting))
            made = replays.make(setting, progress)
            self.scores.add(setting.label, made.path)
            self._note(setting, Step(setting.label, made.path, made.is_reused, made.seconds, None, None))
        return setting.label

    def attempt(self, changes: Mapping[str, str]) -> str | None:
        """Returns the same, or None where it cannot be replayed; then its step says why."""
        setting = self._space.setting(changes)
        known = self._steps.get(setting)
        if known is not None:
            return None if known.path is None else known.label
        try:
            return self.make(changes)
        except (ConfigError, ModelError, BackendUnavailableError) as error:
            self._note(setting, Step(setting.label, None, False, 0.0, None, None, str(error)))
            return None

    def why_not(self, changes: Mapping[str, str]) -> str | None:
        """Returns why a setting could not be replayed; None where it could, or was not tried."""
        step = self._steps.get(self._space.setting(changes))
        return None if step is None else step.reason

    def difference(self) -> Amounts:
        """Returns how far A is from B."""
        return means(self.scores.difference("a", "b"))

    def left(self, label: str) -> float:
        """Returns how far a replay is from B, in k2."""
        return means(self.scores.difference(label, "b")).k2

    def steps(self) -> tuple[Step, ...]:
        """Returns all replays with their distances, over the tokens that all have."""
        return tuple(
            step
            if step.path is None
            else dataclasses.replace(
                step,
                to_a=means(self.scores.difference("a", step.label)),
                to_b=means(self.scores.difference(step.label, "b")),
            )
            for step in self._steps.values()
        )

    def _note(self, setting: Setting, step: Step) -> None:
        self._steps[setting] = step
        if self._watcher is not None:
            self._watcher.ends(step, None if step.path is None else self.left(step.label) / self.difference().k2)
