"""What a cause is: it reads the compared tokens, and claims what it contributes to each of them."""

from __future__ import annotations

import functools
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from tracekit.analysis.explain.significance import Test
from tracekit.analysis.explain.tokens import Bins, Bools, Floats, Tokens

# Exact arithmetic on recorded values; a recorded fact that tells tokens apart; a scan that needs none; only a tail.
EXACT, FACT, SCAN, TAIL = range(4)
_MOST_TESTED = 8000


@dataclass(frozen=True)
class Question:
    """What is asked of a cause.

    Attributes:
        tokens: the compared tokens.
        residual: float64 [N], what no cause found so far has taken, in nat; 0 where d is infinite.
        noise: the mean square in nat² that repeats, or one bf16 step, would make of equal sides.
        chosen: bool [R], requests by which claims choose an edge, a curve, a temperature; the others are for
            estimates.
        runs: rows of `runs` of A and of B.
        found: names of the causes found so far.
        repeated: float64 [N], the mean square in nat² of what repeats differ by at each token, NaN where that is not
            known; None without repeats.
    """

    tokens: Tokens
    residual: Floats
    noise: float
    chosen: Bools
    runs: Mapping[str, list[dict[str, Any]]]
    found: frozenset[str] = frozenset()
    repeated: Floats | None = None

    @functools.cached_property
    def tested(self) -> Bools:
        """The requests that claims are tested on, bool [R]: all, where that is not too much to draw anew so often."""
        return np.ones_like(self.chosen) if len(self.chosen) <= _MOST_TESTED else self.chosen

    @functools.cached_property
    def score(self) -> Floats:
        """How large the residual is, float64 [N], mean 0 in each bin of probability.

        Beside what repeats differ by at the token, where that is known: if nothing is at work, the two change places.
        """
        size = np.abs(self.residual)
        unit = max(np.sqrt(self.noise), float(np.median(size[size > 0])) if np.any(size > 0) else 0.0, 1e-9)
        bins = self.tokens.probability_bins
        score = np.log1p(np.square(size / unit))
        score -= _means(score, bins)[bins]
        if self.repeated is not None:
            known = ~np.isnan(self.repeated)
            repeats = np.log1p(np.where(known, self.repeated, 0.0) / unit**2)
            score -= np.where(known, repeats - _means(repeats, bins, known)[bins], 0.0)
        return np.asarray(score)

    def setting(self, side: str, name: str) -> Any:
        """Returns what the runs of 'a' or 'b' say of a setting; None where they are silent or disagree.

        A column of `runs`, or a key of the engine's configuration, which is 'none' where it is set to nothing.
        """
        told = [_told(row, name) for row in self.runs[side]]
        found = {repr(one): one for one in told if one is not None}
        return next(iter(found.values())) if len(found) == 1 else None


def _told(run: Mapping[str, Any], name: str) -> Any:
    if name in run:
        return run[name]
    try:
        document = json.loads(run.get("engine_config") or "{}")
    except ValueError:
        return None
    if not isinstance(document, dict) or name not in document:
        return None
    return "none" if document[name] is None else document[name]


def _means(values: Floats, bins: Bins, known: Bools | None = None) -> Floats:
    """Returns the mean of each bin; 0 for one without values."""
    weights = np.ones(len(values)) if known is None else known.astype(np.float64)
    counts = np.bincount(bins, weights)
    return np.asarray(np.bincount(bins, values * weights) / np.maximum(counts, 1))


@dataclass(frozen=True)
class Variant:
    """One form of a claim: with one temperature, from one position on.

    Attributes:
        parameters: what it says, by name.
        query: SQL whose rows are the tokens that it is about, with `place`, `request_id`, `output_index`.
        delta: returns its contributions in nat, float64 [N], 0 where it has none, from the residual.
        excess: float64 [N] or None: of a cause that is known by sizes only, its share of each token's square.
    """

    parameters: dict[str, Any]
    query: str
    delta: Callable[[Floats], Floats]
    excess: Floats | None = None

    @classmethod
    def of_excess(cls, parameters: dict[str, Any], query: str, excess: Floats) -> Variant:
        """Returns the variant of a cause that is known by the sizes of differences only: by their squares' shares."""
        return cls(parameters, query, lambda residual: residual * excess, excess)

    def left(self, residual: Floats) -> Floats:
        """Returns what other causes are looked for in: without it tokens that it touched are as large as the others."""
        return residual - self.delta(residual) if self.excess is None else residual * np.sqrt(1 - self.excess)


@dataclass(frozen=True)
class Claim:
    """That a cause is at work: its variants, and the test that tells whether the best of them is more than chance.

    Attributes:
        cause: whose claim it is.
        test: what tells.
        variant: returns the variant of the index that stood best.
        verdict: what is said where it is believed.
        fit: of claims about the size of differences: how much of the scores' sum of squares it explains.
        otherwise: what is said where it is not believed, if what was recorded could hardly tell.
    """

    cause: Cause
    test: Test
    variant: Callable[[int], Variant]
    verdict: str = "found"
    fit: float = 0.0
    otherwise: str | None = None


@dataclass(frozen=True)
class Undecided:
    """Why what was recorded cannot tell, where it matters."""

    cause: Cause
    reason: str


@dataclass(frozen=True)
class Cause(ABC):
    """A cause of differences: one module, and the .sql of its evidence beside it.

    Third parties add theirs through the entry-point group `tracekit.causes`, which names a class without arguments.

    Attributes:
        name: as in reports.
        title: what it is, for people.
        rung: its place on the way from the client to the weights; shares are taken in this order.
        tier: EXACT, FACT, SCAN or TAIL: the earlier ones are believed first.
        settings: columns of `runs`, or keys of the engine's configuration, that switch it.
        next_step: the experiment that would settle it.
        error: which part of the squares that it takes it may have wrong: of others, so much is no more than noise.
        defers: whether it comes after others of its tier that leave no more: they say more of what it sees.
    """

    name: str
    title: str
    rung: int
    tier: int = EXACT
    settings: tuple[str, ...] = ()
    next_step: str = ""
    error: float = 0.0
    defers: bool = False

    @abstractmethod
    def claim(self, question: Question) -> Claim | Undecided | None:
        """Returns what it claims; None where it plainly plays no part."""

    def query(self, ending: str = "", /, **values: float | int | str) -> str:
        """Returns the SQL of its evidence.

        Args:
            ending: of the file's name before .sql, where its module has several.
            values: what stands for placeholders like $name; numbers in full precision.
        """
        text = Template(_text(type(self).__module__, ending))
        return text.substitute({name: str(value) for name, value in values.items()}).strip()


@functools.cache
def _text(module: str, ending: str) -> str:
    package, _, stem = module.rpartition(".")
    name = f"{stem}{ending}.sql"
    if package:
        return (resources.files(package) / name).read_text(encoding="utf-8")
    return Path(str(sys.modules[module].__file__)).with_name(name).read_text(encoding="utf-8")
