"""Causes that put all logits through one monotone map: B's logit of a token is a function of A's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import Cause, Claim, Question, Undecided
from tracekit.analysis.explain.exact import Exact, by_exact_deltas
from tracekit.analysis.explain.fitting import best_value
from tracekit.analysis.explain.tokens import Floats, Tokens, rows_to_fit

# What twenty candidates do not tell of the other logits makes some percent of what a strong cap takes.
CURVE_ERROR = 0.06
# A map must leave at most this share of how far the logits are apart, and that must be more than rounding.
_LEFT = 0.25
_APART = 0.01
_QUANTILE = 0.25
_SCALES = np.exp(np.linspace(np.log(0.2), np.log(5), 41))
_CAPS = np.exp(np.linspace(np.log(2), np.log(500), 41))

# Where logits are others, top-p and min-p keep another mass. How much that is, both sides recorded.
_KEPT = " + coalesce(ln(a_kept_mass::DOUBLE / b_kept_mass), 0)"

Curve = Callable[[Floats, float], Floats]


@dataclass(frozen=True)
class Logits:
    """Raw logits of M tokens, float64 [M] each: of all that both sides know, or of so many as fix a curve."""

    a: Floats
    b: Floats

    @classmethod
    def of(cls, question: Question) -> Logits | None:
        return question.tokens.once("logits", lambda: cls._of(question))

    @classmethod
    def _of(cls, question: Question) -> Logits | None:
        tokens = question.tokens
        if not tokens.known("a_logit", "b_logit"):
            return None
        fitted = rows_to_fit(question.chosen[tokens.request])
        a, b = tokens["a_logit"][fitted], tokens["b_logit"][fitted]
        both = np.isfinite(a) & np.isfinite(b)
        return cls(a[both], b[both]) if np.any(both) else None

    @property
    def apart(self) -> float:
        """How far logits are apart: a low quantile, for a map moves all, and another cause most of them."""
        return float(np.quantile(np.abs(self.b - self.a), _QUANTILE))

    def left(self, mapped: Floats) -> float:
        """Returns how far B's logits are from mapped ones of A, by how far without a map."""
        apart = self.apart
        return float(np.quantile(np.abs(self.b - mapped), _QUANTILE)) / apart if apart > 0 else 1.0

    @functools.cached_property
    def scale(self) -> float | None:
        """The number that A's logits are multiplied by in B; None where that does not tell how they differ."""
        return self._better(self._fit(_SCALES, _scaled), _scaled, self._fit(_CAPS, _capped), _capped)

    @functools.cached_property
    def cap(self) -> float | None:
        """The soft cap that A's logits are under in B; None where that does not tell how they differ."""
        return self._better(self._fit(_CAPS, _capped), _capped, self._fit(_SCALES, _scaled), _scaled)

    def _fit(self, grid: Floats, curve: Curve) -> float:
        return best_value(grid, lambda value: float(np.mean(np.abs(self.b - curve(self.a, value)))))[0]

    def _better(self, value: float, curve: Curve, other_value: float, other: Curve) -> float | None:
        """Returns the value where its curve leaves little, and no more than the other one does."""
        left = self.left(curve(self.a, value))
        return value if self.apart > _APART and left < _LEFT and left <= self.left(other(self.a, other_value)) else None


def without_logits(cause: Cause, question: Question) -> Undecided | None:
    """Returns that a cause of raw logits cannot be told, where a side has none."""
    missing = [side.upper() for side in "ab" if not question.tokens.known(f"{side}_logit")]
    if not missing:
        return None
    return Undecided(
        cause,
        f"raw logits of the tokens are not in {' and '.join(missing)}, as in no trainer's trace; hold A against a "
        "replay with the trainer's model (tracekit replay)",
    )


def is_scaled(question: Question) -> bool:
    """Returns whether B's raw logits are A's times one number: what a temperature does to processed ones only."""
    logits = Logits.of(question)
    return logits is not None and logits.scale is not None


def slope_of_values(question: Question) -> str:
    """Returns, as SQL, what raw logits are multiplied by in A's values: 1, or 1 / temperature."""
    tokens = question.tokens
    if not tokens.known("a_raw", "a_processed"):
        return "1"
    in_raw = tokens.once("in_raw", lambda: _is_in_raw(tokens))
    if "temperature" in question.found:
        in_raw = not in_raw
    return "1" if in_raw else "(CASE WHEN temperature > 0 THEN 1 / temperature ELSE 1 END)"


def _is_in_raw(tokens: Tokens) -> bool:
    """Returns whether A's values are of raw logits rather than of processed ones."""
    value = tokens["a_value"][tokens.finite]
    to_raw, to_processed = (
        np.nanmean(np.minimum(np.abs(value - tokens[name][tokens.finite]), 1)) for name in ("a_raw", "a_processed")
    )
    return bool(to_raw <= to_processed)


def by_curve(cause: Cause, question: Question, name: str, value: float, slope: str) -> Claim | None:
    """Claims what a curve of one parameter does to each token, with or without what it does to the mass kept."""
    parameter: dict[str, float] = {name: value}
    variants = [
        Exact.of(question, cause.query(**parameter, slope=slope, kept=kept), **parameter)
        for kept in ("", *([_KEPT] if truncates(question, slope) else []))
    ]
    return by_exact_deltas(cause, question, variants)


def truncates(question: Question, slope: str) -> bool:
    """Returns whether values are of what truncation left, and both sides recorded how much that was."""
    return slope != "1" and question.tokens.known("a_kept_mass", "b_kept_mass")


def _scaled(logits: Floats, scale: float) -> Floats:
    return logits * scale


def _capped(logits: Floats, cap: float) -> Floats:
    return np.asarray(cap * np.tanh(logits / cap))
