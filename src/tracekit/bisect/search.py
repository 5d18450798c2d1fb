"""Looks for the settings that take A's scores to B's: one factor at a time from a baseline, then several together."""

from __future__ import annotations

from tracekit.bisect.answer import Found, answer
from tracekit.bisect.plan import Plan
from tracekit.bisect.result import Bisected
from tracekit.bisect.rules import Rules
from tracekit.bisect.runs import BASELINE, Runs, Watcher
from tracekit.bisect.shares import NOTHING, Amounts, means


def search(plan: Plan, watcher: Watcher | None = None, *, tries_all: bool = False) -> Bisected:
    """Runs a bisection.

    It stops where a replay reaches B: where what is left between them is no more than the noise, or than a hundredth
    of the difference.

    Args:
        plan: what is done.
        watcher: is told how far it is.
        tries_all: replay every factor alone, also once the answer is settled.

    Raises:
        ConfigError, ModelError, BackendUnavailableError: the baseline cannot be replayed.
    """
    runs = Runs(plan, watcher)
    if runs.difference().k2 == 0:
        return answer(runs, Rules(0.0, 0.0), Found((), {}), NOTHING)
    for number, null in enumerate(plan.nulls):
        runs.scores.add(_null(number), null.path)
    runs.make({})
    noise = _noise(runs)
    rules = Rules(runs.difference().k2, noise.k2)
    return answer(runs, rules, _Search(runs, rules, tries_all=tries_all).found(), noise)


def _noise(runs: Runs) -> Amounts:
    names = [_null(number) for number in range(len(runs.plan.nulls))] or [BASELINE]
    return max((means(runs.scores.difference("a", name)) for name in names), key=lambda amounts: amounts.k2)


def _null(number: int) -> str:
    return f"null {number}"


class _Search:
    def __init__(self, runs: Runs, rules: Rules, *, tries_all: bool) -> None:
        self._runs = runs
        self._rules = rules
        self._tries_all = tries_all
        # By factor, the level that is nearest to B; of those that cannot be replayed alone, the first.
        self._nearest: dict[str, str] = {}
        self._impossible: list[str] = []

    def found(self) -> Found:
        is_reached = self._rules.reaches(self._runs.left(BASELINE))
        if not is_reached or self._tries_all:
            self._try_alone()
        return Found(() if is_reached else tuple(self._chosen()), self._nearest)

    def _try_alone(self) -> None:
        for one in self._runs.plan.varied:
            lefts: dict[str, float] = {}
            for level in one.others:
                label = self._runs.attempt({one.name: level})
                if label is None:
                    continue
                lefts[level] = self._runs.left(label)
                self._nearest[one.name] = min(lefts, key=lambda level: lefts[level])
                if self._rules.reaches(lefts[level]) and not self._tries_all:
                    return
            if not lefts:
                # Another engine may have what the baseline's lacks.
                self._impossible.append(one.name)
                self._nearest[one.name] = one.others[0]

    def _chosen(self) -> list[str]:
        """Returns the factors that take A to B together, as few as suffice, in the order in which they do it."""
        lefts = {name: self._left([name]) for name in self._nearest if name not in self._impossible}
        in_order = sorted(lefts, key=lambda name: lefts[name])
        if in_order and self._rules.reaches(lefts[in_order[0]]):
            return in_order[:1]
        in_order = [*in_order, *self._impossible]
        names: list[str] = []
        while (name := self._next(names, in_order)) is not None:
            names = [*names, name]
            if self._rules.reaches(self._left(names)):
                return names
        # Factors that do nothing alone may do something together.
        if len(names) < len(in_order) > 1 and self._is_nearer(names, in_order):
            names = in_order
            for name in reversed(in_order):
                fewer = [other for other in names if other != name]
                if self._label(fewer) is not None and not self._is_nearer(fewer, names):
                    names = fewer
        return names

    def _next(self, names: list[str], in_order: list[str]) -> str | None:
        """Returns the factor that takes what these leave nearest to B; None where none does."""
        nearest = None
        for name in in_order:
            if name in names or not self._is_nearer(names, [*names, name]):
                continue
            if nearest is None or self._left([*names, name]) < self._left([*names, nearest]):
                nearest = name
            if self._rules.reaches(self._left([*names, nearest])):
                break
        return nearest

    def _label(self, names: list[str]) -> str | None:
        return self._runs.attempt({name: self._nearest[name] for name in names})

    def _left(self, names: list[str]) -> float:
        label = self._label(names)
        assert label is not None
        return self._runs.left(label)

    def _is_nearer(self, before: list[str], after: list[str]) -> bool:
        first, second = self._label(before), self._label(after)
        if first is None or second is None:
            return False
        # What reaches B is no chance, in however few requests the rest of the difference stands.
        if self._rules.reaches(self._runs.left(second)) and not self._rules.reaches(self._runs.left(first)):
            return True
        return self._rules.is_nearer(self._runs.scores, first, second)
