"""Like logits, but one side's softmax has more entries, all with one logit: where others are low, they take mass."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import Cause, Claim, Question, Undecided
from tracekit.analysis.explain.curves import slope_of_values, truncates, without_logits
from tracekit.analysis.explain.exact import Exact, by_exact_deltas
from tracekit.analysis.explain.fitting import best_value
from tracekit.analysis.explain.tokens import rows_to_fit

# Of how far logsumexp are apart beyond what the logits tell, padding must explain so much. Of other weights alone it
# explains 0.6%; of padding with half of k2, beside KV entries of older weights, 14%.
_EXPLAINED = 0.05
_TINY = 1e-12
# Of the mass of the token where others have least: far below what float32 resolves, to as much as where they have most.
_SHARES = np.exp(np.linspace(np.log(1e-9), np.log(1e9), 91))
# How many entries there are, which matters where logits are divided by a temperature.
_NUMBERS = np.exp(np.linspace(0, np.log(1e5), 24))


@dataclass(frozen=True)
class PaddedVocabulary(Cause):
    """Padded vocabulary."""

    name: str = "padded_vocabulary"
    title: str = "more entries inside one side's softmax: padded vocabulary"
    rung: int = 44
    settings: tuple[str, ...] = ("vocab_size",)
    next_step: str = "cut the logits to the tokenizer's vocabulary before log_softmax"

    def claim(self, question: Question) -> Claim | Undecided | None:
        tokens = question.tokens
        if not tokens.known("a_logit", "b_logit", "a_logsumexp", "b_logsumexp"):
            return without_logits(self, question)
        variants = []
        for padded, other in (("b", "a"), ("a", "b")):
            ask = functools.partial(self._padding, question, padded, other)
            padding = tokens.once(("padding", padded), ask)
            if padding is not None:
                variants += self._of(question, padded, other, padding)
        return by_exact_deltas(self, question, variants)

    def _of(self, question: Question, padded: str, other: str, padding: float) -> list[Exact]:
        """Returns the variants with the number of entries that fits best."""
        slope = slope_of_values(question)
        values: dict[str, float | str] = {
            "other": other,
            "padding": padding,
            "sign": -1 if padded == "b" else 1,
            "slope": slope,
        }
        values["processed"] = "false" if slope == "1" else "true"

        def evidence(number: float, kept: str = "false") -> str:
            return self.query(**values, log_num=float(np.log(number)), kept=kept)

        def variant(number: float, kept: str = "false") -> Exact:
            return Exact.of(question, evidence(number, kept), padded_side=padded, padding_logsumexp=padding)

        fitted = rows_to_fit(question.tokens.finite)

        def left(number: float) -> float:
            delta = question.tokens.values_at(fitted, evidence(number), "delta")
            return float(np.mean(np.abs(question.residual[fitted] - np.where(np.isfinite(delta), delta, 0.0))))

        at_temperatures = np.unique(question.tokens["temperature"][question.tokens.finite])
        is_at_one = slope == "1" or np.all(np.isin(at_temperatures, (0, 1)))
        number = 1.0 if is_at_one else best_value(_NUMBERS, left)[0]
        return [variant(number), *([variant(number, "true")] if truncates(question, slope) else [])]

    def _padding(self, question: Question, padded: str, other: str) -> float | None:
        """Returns the logsumexp of the entries that one side has more; None where they do not tell how sides differ."""
        tokens = question.tokens
        fitted = rows_to_fit(question.chosen[tokens.request])
        padded_total, total, padded_logit, logit = (
            tokens[name][fitted]
            for name in (f"{padded}_logsumexp", f"{other}_logsumexp", f"{padded}_logit", f"{other}_logit")
        )
        apart, of_logits = padded_total - total, padded_logit - logit
        known = np.isfinite(apart) & np.isfinite(of_logits)
        total, apart, of_logits = total[known], apart[known], of_logits[known]
        if not np.any(apart):
            return None
        least = float(np.min(total))
        # Other weights move the sum with the logits, and padding moves it alone.
        apart = apart - (apart @ of_logits) / max(float(of_logits @ of_logits), _TINY) * of_logits

        def left(share: float) -> float:
            # By sizes, for what else is at work moves a few far.
            return float(np.sum(np.abs(apart - np.log1p(share * np.exp(least - total)))))

        share, least_left = best_value(_SHARES, left)
        if least_left > (1 - _EXPLAINED) * float(np.sum(np.abs(apart))):
            return None
        return least + float(np.log(share))
