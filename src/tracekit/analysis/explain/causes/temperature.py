"""One side's values are of logits divided by a temperature, and the other's are not, or by another one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tracekit.analysis.explain.base import Cause, Claim, Question, Undecided
from tracekit.analysis.explain.curves import is_scaled
from tracekit.analysis.explain.exact import Exact, by_exact_deltas
from tracekit.analysis.explain.fitting import Sample, best_value
from tracekit.analysis.explain.tokens import Floats

_GRID = np.exp(np.linspace(np.log(0.1), np.log(10), 41))
# A temperature of its own must explain so much more than the recorded one.
_BETTER = 0.9
_OTHER = 0.01
_NO_CANDIDATES = "A has no candidates (top_logits) to try other temperatures on; record with --top-k 20"


@dataclass(frozen=True)
class Temperature(Cause):
    """Temperature."""

    name: str = "temperature"
    title: str = "raw against processed: temperature on one side only, or another one"
    rung: int = 34
    settings: tuple[str, ...] = ("logprobs_mode",)
    next_step: str = "set logprobs_mode=processed_logprobs, or divide the trainer's logits by the temperature"

    def claim(self, question: Question) -> Claim | Undecided | None:
        tokens = question.tokens
        variants: list[Exact] = []
        for side in ("a", "b"):
            if tokens.known(f"{side}_processed", f"{side}_kept_mass", f"{side}_raw") and not variants:
                added = Exact.of(question, self.query(side=side, sign=1), applied_by="b")
                if np.any(added.contributions != 0):
                    variants = [added, added.negated(self.query(side=side, sign=-1), applied_by="a")]
        sample = Sample.of(question)
        fitted = [] if sample is None or is_scaled(question) else self._fitted(question, sample, variants)
        claim = by_exact_deltas(self, question, [*variants, *fitted])
        if sample is not None or not np.any(tokens["temperature"] > 0):
            return claim
        return Undecided(self, _NO_CANDIDATES) if claim is None else replace(claim, otherwise=_NO_CANDIDATES)

    def _fitted(self, question: Question, sample: Sample, recorded: list[Exact]) -> list[Exact]:
        """Returns the variant of the temperature that fits best, where that is not the recorded one."""
        of, temperatures = sample.columns, sample.columns["temperature"]
        to_raw, to_processed = (
            float(np.nanmean(np.minimum(np.abs(of["a_value"] - of[name]), 1)))
            if np.any(~np.isnan(of[name]))
            else np.inf
            for name in ("a_raw", "a_processed")
        )
        from_raw = to_raw <= to_processed
        start = sample.scaled(1.0 if from_raw else 1 / temperatures)
        value, loss = best_value(_GRID, lambda one: sample.left(sample.scaled(1 / one) - start))
        for one in recorded:
            low, high = _range(question.tokens["temperature"][one.contributions != 0])
            one.parameters["temperature"] = low if low == high else [low, high]
            one.parameters["temperature_estimated"] = value
        least = min(sample.left(delta) for delta in (np.zeros(1), *(one.contributions[sample.row] for one in recorded)))
        # What rounding makes of a temperature is no other one.
        own = 1.0 if from_raw else temperatures[temperatures > 0]
        if loss > _BETTER * least or np.all(np.abs(value / own - 1) < _OTHER):
            return []
        query = self.query("_fitted", temperature=value, start="1" if from_raw else "temperature")
        return [Exact.of(question, query, temperature=value, temperature_estimated=value)]


def _range(values: Floats) -> tuple[float, float]:
    # Columns hold float32: what a caller wrote has no more than seven digits.
    return tuple(float(f"{value:.7g}") for value in (np.min(values), np.max(values)))  # type: ignore[return-value]
