"""Which causes are believed: one claim after the other, each tested on what those before it left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tracekit.analysis.explain.base import EXACT, FACT, SCAN, TAIL, Cause, Claim, Question, Undecided, Variant
from tracekit.analysis.explain.noise import FARTHEST
from tracekit.analysis.explain.parts import parts_of
from tracekit.analysis.explain.significance import Significance, judge
from tracekit.analysis.explain.tokens import Floats

# A claim is believed where fewer than one in a hundred draws make as much of nothing, over all that is claimed.
ALPHA = 0.01
# Recorded facts are believed before scans that are hardly better.
_PREFERENCE = 0.85
# What an exact cause takes away at least of the sizes of differences: less is arithmetic that happens to fit.
_LEAST_GAIN = 0.002
# What a cause that is known by sizes carries of k2 at least, once it was fitted together with the others.
_LEAST_SHARE = 0.002
# A fact that explains so much of what a scan does may be what the scan saw.
_COMPARABLE = 0.5
# Two scans read one thing, the position: one that fits so much of what the other does is not told from it.
_ALIKE = 0.9
# A studentised statistic so low speaks against a fact.
_REFUTED = -2.0
# Of the squares of differences: where so much is left nothing waits for a decision.
_SETTLED = 0.01
_POSSIBLE = "possible"
_MOST_TOLD = 80


@dataclass(frozen=True)
class Selected:
    """A claim that was believed."""

    cause: Cause
    variant: Variant
    verdict: str
    significance: Significance
    fit: float
    rivals: tuple[Cause, ...] = ()


def select(
    base: Question, tried: list[Cause], tell: Callable[[str], None]
) -> tuple[list[Selected], list[Selected], dict[str, str]]:
    """Believes one claim after the other, each tested on what those before it left."""
    selected: list[Selected] = []
    weak: dict[str, Selected] = {}
    undecided: dict[str, str] = {}
    residual, noise = base.residual, base.noise
    while True:
        found = frozenset(one.cause.name for one in selected)
        question = replace(base, residual=residual, noise=noise, found=found)
        claims: list[Claim] = []
        for cause in tried:
            # Scans are readings of one thing, the position: one of them is enough.
            if cause.name in found or (cause.tier == SCAN and any(one.cause.tier == SCAN for one in selected)):
                continue
            tell(f"testing {cause.title}")
            claim = cause.claim(question)
            if isinstance(claim, Undecided):
                undecided[cause.name] = claim.reason
            elif claim is not None:
                claims.append(claim)
        believed = []
        for claim, significance in zip(claims, judge([claim.test for claim in claims]), strict=True):
            one = Selected(claim.cause, claim.variant(significance.variant), claim.verdict, significance, claim.fit)
            if not _is_significant(significance):
                if reason := _undecided(claim, significance, question):
                    undecided[claim.cause.name] = reason
            elif _is_large(one, question):
                believed.append(one)
            else:
                weak[claim.cause.name] = one
        if not believed:
            break
        unclear = [cause for cause in tried if cause.tier == FACT and cause.name in undecided]
        best = _with_rivals(_first(believed, question), believed, claims, unclear, question)
        noise = max(noise, best.cause.error * float(np.mean(np.square(best.variant.delta(residual)))))
        residual = best.variant.left(residual)
        selected.append(best)
    for one in selected:
        weak.pop(one.cause.name, None)
        undecided.pop(one.cause.name, None)
    selected = _shared_out(base, selected)
    left = _without_exact(base, selected)
    slight = [one for one in selected if _is_slight(one, left, base)]
    selected = [one for one in selected if not _is_slight(one, left, base)]
    return selected, [*weak.values(), *slight], undecided if _is_unsettled(base, selected) else {}


def _undecided(claim: Claim, significance: Significance, question: Question) -> str | None:
    """Returns why a claim that is not believed is not refuted either; None where it is.

    A fact whose setting is known to differ is at work, much or little: too few requests do not speak against it.
    """
    experiment = f"; {claim.cause.next_step}" if claim.cause.tier == FACT else ""
    if claim.otherwise is not None:
        return claim.otherwise + experiment
    values = [(name, *(question.setting(side, name) for side in "ab")) for name in claim.cause.settings]
    differing = [
        f"{name} is {_brief(a)} in A, {_brief(b)} in B" for name, a, b in values if None not in (a, b) and a != b
    ]
    if claim.cause.tier != FACT or not differing or significance.statistic <= _REFUTED:
        return None
    return f"{differing[0]}, and what was recorded is too little to tell (p = {significance.p_value:.2g}){experiment}"


def _brief(value: object) -> str:
    """Returns a setting on part of a line: of a document, what it holds at its top."""
    if isinstance(value, Mapping):
        value = ", ".join(f"{key}={of}" for key, of in value.items() if isinstance(of, str | int | float) and of)
    text = str(value)
    return text if len(text) <= _MOST_TOLD else f"{text[:_MOST_TOLD]} …"


def _is_slight(one: Selected, residual: Floats, base: Question) -> bool:
    """Whether a cause that is known by sizes has next to nothing of k2, beside those that leave this residual."""
    if one.variant.excess is None:
        return False
    own, whole = np.sum(one.variant.delta(residual) * residual), np.sum(np.square(base.residual))
    return bool(own < _LEAST_SHARE * whole)


def _without_exact(base: Question, selected: Sequence[Selected]) -> Floats:
    """Returns what exact causes leave."""
    return down([one for one in selected if one.cause.tier == EXACT], base.residual)[1]


def _shared_out(base: Question, selected: Sequence[Selected]) -> list[Selected]:
    """Returns what was selected, where those that are known by sizes have their parts of what the others leave."""
    residual = _without_exact(base, selected)
    by_size = [one for one in selected if one.variant.excess is not None]
    excesses = [one.variant.excess for one in by_size if one.variant.excess is not None]
    parts = dict(
        zip((one.cause.name for one in by_size), parts_of(replace(base, residual=residual), excesses), strict=True)
    )
    return [
        replace(one, variant=Variant.of_excess(one.variant.parameters, one.variant.query, parts[one.cause.name]))
        if one.cause.name in parts
        else one
        for one in selected
    ]


def _is_unsettled(base: Question, selected: Sequence[Selected]) -> bool:
    """Whether more than noise is left of the differences by the causes that are more than possible."""
    settled = [one for one in selected if one.verdict != _POSSIBLE]
    _, residual = down(settled, base.residual)
    least = max(base.noise, _SETTLED * float(np.mean(np.square(base.residual))))
    return float(np.mean(np.square(residual))) > least


def _is_significant(significance: Significance) -> bool:
    return significance.p_value <= ALPHA and significance.statistic > 0


def _is_large(one: Selected, question: Question) -> bool:
    """Whether a cause makes more than noise does; exact arithmetic needs to take differences away."""
    if one.cause.tier == EXACT:
        return _left(one, question) <= (1 - _LEAST_GAIN) * float(np.sum(np.abs(question.residual)))
    delta = one.variant.delta(question.residual)
    touched = delta != 0 if one.variant.excess is None else one.variant.excess > 0
    if not np.any(touched):
        return False
    noise = question.noise
    if question.repeated is not None and not np.all(np.isnan(question.repeated[touched])):
        # Some kinds of tokens differ more between repeats, too.
        noise = max(noise, FARTHEST * float(np.nanmean(question.repeated[touched])))
    return float(np.mean(np.square(question.residual[touched]))) > noise


def _left(one: Selected, question: Question) -> float:
    """Returns the sum of sizes that a claim leaves."""
    return float(np.sum(np.abs(one.variant.left(question.residual))))


def _first(believed: list[Selected], question: Question) -> Selected:
    """Returns the claim to believe first: exact arithmetic, then the fact or scan that fits best, then tails."""
    exact = [one for one in believed if one.cause.tier == EXACT]
    if exact:
        best = max(exact, key=lambda one: (not one.cause.defers, one.significance.statistic))
        return min([best, *(one for one in exact if one.cause.defers)], key=lambda one: _left(one, question))
    clear = [one for one in believed if one.cause.tier != TAIL]
    if clear:
        return max(clear, key=lambda one: one.fit * (_PREFERENCE if one.cause.tier == SCAN else 1.0))
    return min(believed, key=lambda one: one.cause.rung)


def _with_rivals(
    best: Selected,
    believed: Sequence[Selected],
    claims: Sequence[Claim],
    unclear: Sequence[Cause],
    question: Question,
) -> Selected:
    """Returns a claim with its rivals: what would make the same, as far as the data tells.

    A rival is a fact that leaves nothing of the claim, and of which the claim leaves nothing. Of a fact it must be
    believed itself. Of a scan it need not be: where only long prompts are cut, say, hardly any like requests are left
    to hold that against. If it fits as well it takes the scan's place, for a setting that is known to differ is the
    likelier reason; and so does a fact that leaves nothing of the scan, and of which the scan leaves something. What
    the data cannot tell at all may be behind any scan, and so may another scan that fits about as well.
    """
    if best.cause.tier not in (FACT, SCAN):
        return best
    is_scan = best.cause.tier == SCAN
    stood = {one.cause.name for one in believed}
    left = replace(question, residual=best.variant.left(question.residual))
    rivals = []
    for claim in sorted(claims, key=lambda claim: -claim.fit):
        fits = claim.fit >= _COMPARABLE * best.fit if is_scan else claim.cause.name in stood
        if claim.cause.tier != FACT or claim.cause.name == best.cause.name or not fits:
            continue
        if _stands(best.cause, replace(question, residual=claim.variant(0).left(question.residual))):
            continue
        own = _stands(claim.cause, left)
        if own is None:
            rivals.append(claim)
        elif is_scan:
            return Selected(claim.cause, claim.variant(0), claim.verdict, own, claim.fit)
    named = tuple(claim.cause for claim in rivals)
    if is_scan:
        scans = (one for one in believed if one.cause.tier == SCAN and one.cause.name != best.cause.name)
        unclear = [*(one.cause for one in scans if one.fit >= _ALIKE * best.fit), *unclear]
    if is_scan and rivals and rivals[0].fit >= best.fit:
        likelier, others = rivals[0], (best.cause, *named[1:], *unclear)
        return Selected(likelier.cause, likelier.variant(0), _POSSIBLE, best.significance, likelier.fit, others)
    named += tuple(unclear) if is_scan else ()
    return replace(best, verdict=_POSSIBLE, rivals=named) if named else best


def _stands(cause: Cause, question: Question) -> Significance | None:
    """Returns how a cause stands the test on what another one leaves; None where it is not believed there."""
    claim = cause.claim(question)
    if not isinstance(claim, Claim):
        return None
    (significance,) = judge([claim.test])
    one = Selected(cause, claim.variant(significance.variant), claim.verdict, significance, claim.fit)
    return significance if _is_significant(significance) and _is_large(one, question) else None


def down(ladder: Sequence[Selected], d: Floats) -> tuple[dict[str, Floats], Floats]:
    """Takes contributions away in an order; returns them by cause, and what is left.

    Causes that are known by sizes share out the squares of what is left of d without them, whatever their order.
    """
    deltas, residual, whole = {}, d, d
    for one in ladder:
        by_size = one.variant.excess is not None
        delta = one.variant.delta(whole if by_size else residual)
        deltas[one.cause.name], residual = delta, residual - delta
        if not by_size:
            whole = whole - delta
    return deltas, residual
