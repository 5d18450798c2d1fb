"""Reduces two traces to the fewest requests and tokens that still show how they differ.

A token shows it where it differs by the threshold. The fewest are looked for in the scores that are there; where a
bisection found settings that take A to B, a replay of the reduced trace under them has to show it too. Where it does
not, since it takes other requests in the batch or in the cache, requests are left out by delta debugging, with replays
of what remains.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tracekit.analysis import connect
from tracekit.bisect.delta_debugging import fewest
from tracekit.bisect.excerpt import write_excerpt
from tracekit.bisect.plan import Plan
from tracekit.bisect.queries import query
from tracekit.bisect.replays import Chosen, Replays
from tracekit.bisect.result import BY_REPLAY, BY_SCORES, MOVES, Bisected, Excerpt, Minimised
from tracekit.bisect.runs import BASELINE
from tracekit.bisect.scores import Key, Scores
from tracekit.bisect.shares import Floats
from tracekit.errors import InputError, OutputExistsError
from tracekit.store import Manifest, Trace

_SHARE_OF_LARGEST = 0.5
# In a smaller batch the same settings round otherwise: the reduced trace need not show all of it.
_CONFIRMED_SHARE = 0.5
_MOST_TRIALS = 64


def check_place(folder: Path) -> None:
    """Raises OutputExistsError where the excerpts could not be written."""
    for name in ("a.trace", "b.trace"):
        if (folder / name).exists():
            raise OutputExistsError(f"{folder / name} exists already; choose another folder or remove it first")


def minimise(plan: Plan, found: Bisected, folder: Path, *, threshold: float | None = None) -> Minimised:
    """Writes the fewest requests and tokens that show the difference to `a.trace` and `b.trace` in a folder.

    Args:
        plan: of the bisection.
        found: by it.
        folder: is made where it is not there.
        threshold: a token shows the difference where it is so large; by default half of the largest.

    Raises:
        InputError: no token differs so much.
        OutputExistsError: the place is taken.
    """
    check_place(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return _Reduction(plan, found, folder, threshold).run()


class _Reduction:
    def __init__(self, plan: Plan, found: Bisected, folder: Path, threshold: float | None) -> None:
        self._plan = plan
        self._folder = folder
        self._target = found.target
        # Levels of the factors that take A to B; none where nothing does.
        self._changes = {one.name: str(one.level) for one in found.factors if one.verdict == MOVES}
        self._d = plan.scores.difference("a", "b")
        largest = float(np.max(np.abs(self._d), initial=0.0))
        self._threshold = _SHARE_OF_LARGEST * largest if threshold is None else threshold
        self._num_trials = 0
        if not largest or largest < self._threshold:
            raise InputError(
                f"no token differs by {self._threshold:.3g} nat between A and B, the largest difference is "
                f"{largest:.3g}; give a smaller --threshold"
            )

    def run(self) -> Minimised:
        showing = np.abs(self._d) >= self._threshold
        moved = showing & self._is_moved()
        key, index = self._plan.scores.token(self._cheapest(moved if moved.any() else showing))
        cuts = {key: index + 1}
        if moved.any() and not self._is_confirmed(cuts):
            key, index, cuts = self._with_neighbours()
        a, b = self._written(cuts)
        return Minimised(
            a=a,
            b=b,
            cuts=cuts,
            threshold=self._threshold,
            request_id=key[1],
            output_index=index,
            d=float(self._d[self._plan.scores.place(key, index)]),
            evidence=BY_REPLAY if moved.any() else BY_SCORES,
            num_trials=self._num_trials,
        )

    def _is_moved(self) -> npt.NDArray[np.bool_]:
        """Returns for each token whether the settings that were found move it as A and B differ."""
        if not self._changes:
            return np.zeros(len(self._d), bool)
        moves = self._plan.scores.difference(BASELINE, self._target)
        moved: npt.NDArray[np.bool_] = self._shows(moves) & (np.sign(moves) == np.sign(self._d))
        return moved

    def _shows(self, moves: Floats) -> npt.NDArray[np.bool_]:
        shows: npt.NDArray[np.bool_] = np.abs(moves) >= _CONFIRMED_SHARE * self._threshold
        return shows

    def _cheapest(self, tokens: npt.NDArray[np.bool_]) -> int:
        """Returns which of the tokens needs the fewest tokens before it."""
        scores = self._plan.scores
        num_prompt = np.array([self._plan.lengths[key][0] if key in self._plan.lengths else 0 for key in scores.names])
        num_before = num_prompt[scores.requests()] + scores.indices()
        return int(np.argmin(np.where(tokens, num_before, np.iinfo(np.int64).max)))

    def _is_confirmed(self, cuts: Mapping[Key, int]) -> bool:
        """Returns whether a replay of these requests, cut so, shows the difference."""
        with tempfile.TemporaryDirectory(prefix="tracekit-bisect-") as scratch:
            trace = Trace(write_excerpt(self._plan.trace, Path(scratch, "a.trace"), cuts, parent=None).path)
            replays = self._plan.replays.of(trace, Path(scratch))
            return bool(self._shows(self._moves(replays).difference("a", "b")).any())

    def _moves(self, replays: Replays) -> Scores:
        """Returns the scores of two replays: at the baseline, and as A is taken to B."""
        self._num_trials += 1
        before, after = (replays.make(replays.space.setting(some)).path for some in ({}, self._changes))
        return Scores(Trace(before), Trace(after), self._plan.scores.basis)

    def _with_neighbours(self) -> tuple[Key, int, dict[Key, int]]:
        """Returns a token that shows the difference, and the fewest requests that it takes."""
        plan = self._plan
        first: dict[tuple[Key, ...], tuple[Key, int]] = {}

        def shows(keys: Sequence[Key]) -> bool:
            if self._num_trials >= _MOST_TRIALS:
                return False
            scores = self._moves(plan.replays.of(plan.trace, plan.replays.folder, Chosen(frozenset(keys))))
            places = np.flatnonzero(self._shows(scores.difference("a", "b")))
            if len(places):
                # Runs of a replay have ids of their own; requests keep theirs.
                (_, request_id), index = scores.token(int(places[0]))
                first[tuple(keys)] = next(key for key in keys if key[1] == request_id), index
            return bool(len(places))

        keys = fewest(sorted({plan.scores.names[number] for number in np.unique(plan.scores.requests())}), shows)
        if tuple(keys) not in first and not shows(keys):
            # All of them are needed, and their replays are those of the bisection.
            place = self._cheapest(self._is_moved())
            first[tuple(keys)] = plan.scores.token(place)
        key, index = first[tuple(keys)]
        whole = {one: plan.lengths[one][1] for one in keys}
        cut = whole | {key: index + 1}
        return key, index, cut if self._is_confirmed(cut) else whole

    def _written(self, cuts: Mapping[Key, int]) -> tuple[Excerpt, Excerpt]:
        plan = self._plan
        a, b = plan.trace, plan.against
        with connect(a, b, **plan.alignment) as session:
            rows = session.sql(query("counterparts")).rows()
        theirs = {(a_run, a_id): (b_run, b_id) for a_run, a_id, b_run, b_id in rows}
        of_b = {theirs[key]: num for key, num in cuts.items() if key in theirs}
        mine = write_excerpt(a, self._folder / "a.trace", cuts, parent=a.manifest.parent)
        parent = b.manifest.parent
        if parent == a.manifest.trace_id:
            parent = Manifest.read(mine.path).trace_id
        return mine, write_excerpt(b, self._folder / "b.trace", of_b, parent=parent)
