"""Explains the differences of two traces: selects causes, one after the other, and gives each its share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from tracekit.analysis.explain.base import EXACT, FACT, SCAN, TAIL, Cause, Claim, Question, Undecided, Variant
from tracekit.analysis.explain.noise import FARTHEST, Noise, measure_noise, squares_of_repeats
from tracekit.analysis.explain.parts import parts_of
from tracekit.analysis.explain.queries import all_queries, query
from tracekit.analysis.explain.registry import causes
from tracekit.analysis.explain.shares import share
from tracekit.analysis.explain.significance import Significance, judge
from tracekit.analysis.explain.tokens import Bools, Floats, Tokens, rows
from tracekit.analysis.session import Session
from tracekit.errors import InputError

# A claim is believed where fewer than one in a hundred draws make as much of nothing, over all that is claimed.
ALPHA = 0.01
# Of fewer requests all are used both for choices and for estimates.
_FEWEST_TO_SPLIT = 40
_MOST_CHOSEN = 4000
# A step of the pipeline before this rung is one of the client's values, not of what was computed: it comes first if it
# carries so much of k2.
_SEMANTICS = 38
_LEAST_FIRST = 0.05
# Recorded facts are believed before scans that are hardly better.
_PREFERENCE = 0.85
# What an exact cause takes away at least of the sizes of differences: less is arithmetic that happens to fit.
_LEAST_GAIN = 0.002
# What a cause that is known by sizes carries of k2 at least, once it was fitted together with the others.
_LEAST_SHARE = 0.002
# A fact that explains so much of what a scan does may be what the scan saw.
_COMPARABLE = 0.5
# A studentised statistic so low speaks against a fact.
_REFUTED = -2.0
# Of the squares of differences: where so much is left nothing waits for a decision.
_SETTLED = 0.01
_POSSIBLE, _WITHIN_NOISE = "possible", "within noise"


@dataclass(frozen=True)
class Finding:
    """A cause, and what it carries.

    Attributes:
        cause, title: its name, and what it is.
        verdict: 'found'; 'possible' where other causes leave the same in the data; 'within noise' where it is more than
            chance but no more than repeats, or one bf16 step, make, or next to nothing beside the others.
        p_value: the chance of as large a statistic where no cause is at work, over all causes tried.
        parameters: what was estimated, by name.
        num_tokens: tokens that the evidence lists.
        shares: of k2, k3 and abs(d), by name: what its contributions carry of the whole difference.
        shares_reversed: the same where contributions are taken away in the opposite order; they differ where causes
            interact.
        sql: the evidence: a query whose rows are these tokens.
        next_step: the experiment that would settle it, and those for its rivals.
        settings: columns of `runs` that switch it.
        rivals: causes that would account for the same: the data cannot tell it from them.
    """

    cause: str
    title: str
    verdict: str
    p_value: float | None
    parameters: dict[str, Any]
    num_tokens: int
    shares: dict[str, float]
    shares_reversed: dict[str, float]
    sql: str
    next_step: str
    settings: tuple[str, ...]
    rivals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """Why two traces differ.

    Attributes:
        findings: causes, those of the client's values first, then by their share of k2.
        within_noise: causes that show, but make no more than repeats do.
        undecided: what the recorded data cannot tell, by cause.
        residual: shares of k2, k3 and abs(d) that no cause carries.
        size: k2, k3 and abs(d): means over tokens, in nat.
        noise: what repeats would make of k2.
        num_tokens, num_requests: compared ones.
        num_infinite: tokens of infinite d, which no share counts.
        forks: where tokens differ: requests by cause.
        labels: tokens by their largest contribution, 'unexplained' or 'within noise'.
        workspace: where `explained` is in memory, and the table `_deltas` has contributions by match and output index.
    """

    findings: list[Finding]
    within_noise: list[Finding]
    undecided: dict[str, str]
    residual: dict[str, float]
    size: dict[str, float]
    noise: Noise
    num_tokens: int
    num_requests: int
    num_infinite: int
    forks: dict[str, int]
    labels: dict[str, int]
    workspace: duckdb.DuckDBPyConnection = field(repr=False, compare=False)


@dataclass(frozen=True)
class _Selected:
    """A claim that was believed."""

    cause: Cause
    variant: Variant
    verdict: str
    significance: Significance
    fit: float
    rivals: tuple[Cause, ...] = ()


def explain(
    session: Session,
    nulls: Sequence[Session] = (),
    *,
    progress: Callable[[str], None] | None = None,
    chosen_causes: Sequence[Cause] | None = None,
) -> Explanation:
    """Finds the causes of the differences between the traces of a session.

    Args:
        session: over two traces.
        nulls: comparisons between repeats of A's run, which measure the noise.
        progress: is told what is being done.
        chosen_causes: by default all that are registered.

    Raises:
        InputError: no token has a value on both sides.
        ConfigError: a registered cause cannot be loaded.
    """
    if session.b is None:
        raise ValueError("an explanation needs two traces")
    tell = progress or (lambda _: None)
    tried = list(causes() if chosen_causes is None else chosen_causes)
    workspace = session.workspace(all_queries(tried))
    tell("reading tokens")
    tokens = Tokens(workspace)
    if not tokens.num:
        raise InputError(
            "there is nothing to explain: no token has a logprob on both sides that agree on it; "
            "FROM fork_causes in tracekit shell says why tokens differ"
        )
    noise = measure_noise(nulls, tokens)
    runs = {side: rows(workspace, f"FROM {side}.runs") for side in "ab"}
    base = Question(
        tokens,
        np.where(tokens.finite, tokens.d, 0.0),
        noise.mean_square,
        _chosen(tokens),
        runs,
        repeated=squares_of_repeats(nulls, tokens),
    )
    selected, weak, undecided = _select(base, tried, tell)
    return _explanation(base, selected, weak, undecided, noise, workspace)


def _chosen(tokens: Tokens) -> Bools:
    """Returns by which requests claims choose, bool [R]: half of them, where there are many."""
    chosen = np.ones(tokens.num_requests, bool)
    if tokens.num_requests >= _FEWEST_TO_SPLIT:
        order = np.random.default_rng(0).permutation(tokens.num_requests)
        chosen[order[min(tokens.num_requests // 2, _MOST_CHOSEN) :]] = False
    return chosen


def _select(
    base: Question, tried: list[Cause], tell: Callable[[str], None]
) -> tuple[list[_Selected], list[_Selected], dict[str, str]]:
    """Believes one claim after the other, each tested on what those before it left."""
    selected: list[_Selected] = []
    weak: dict[str, _Selected] = {}
    undecided: dict[str, str] = {}
    residual = base.residual
    while True:
        found = frozenset(one.cause.name for one in selected)
        question = replace(base, residual=residual, found=found)
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
            one = _Selected(claim.cause, claim.variant(significance.variant), claim.verdict, significance, claim.fit)
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
        best = _with_rivals(_first(believed), believed, claims, unclear, question)
        residual = best.variant.left(residual)
        selected.append(best)
    for one in selected:
        weak.pop(one.cause.name, None)
        undecided.pop(one.cause.name, None)
    selected = _shared_out(base, selected)
    is_slight = [one.variant.excess is not None and _share_of(one, base) < _LEAST_SHARE for one in selected]
    slight = [one for one, is_one in zip(selected, is_slight, strict=True) if is_one]
    selected = [one for one, is_one in zip(selected, is_slight, strict=True) if not is_one]
    return selected, [*weak.values(), *slight], undecided if _is_unsettled(base, selected) else {}


def _undecided(claim: Claim, significance: Significance, question: Question) -> str | None:
    """Returns why a claim that is not believed is not refuted either; None where it is.

    A fact whose setting is known to differ is at work, much or little: too few requests do not speak against it.
    """
    if claim.otherwise is not None:
        return claim.otherwise
    values = [(name, *(question.setting(side, name) for side in "ab")) for name in claim.cause.settings]
    differing = [f"{name} is {a} in A, {b} in B" for name, a, b in values if a is not None and b is not None and a != b]
    if claim.cause.tier != FACT or not differing or significance.statistic <= _REFUTED:
        return None
    return f"{differing[0]}, and what was recorded is too little to tell (p = {significance.p_value:.2g})"


def _share_of(one: _Selected, base: Question) -> float:
    """Returns the share of k2 of a cause that is known by sizes, of all that differs."""
    return share(one.variant.delta(base.residual), base.residual)["k2"]


def _shared_out(base: Question, selected: Sequence[_Selected]) -> list[_Selected]:
    """Returns what was selected, where those that are known by sizes have their parts of what the others leave."""
    _, residual = _down([one for one in selected if one.cause.tier == EXACT], base.residual)
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


def _is_unsettled(base: Question, selected: Sequence[_Selected]) -> bool:
    """Whether more than noise is left of the differences by the causes that are more than possible."""
    settled = [one for one in selected if one.verdict != _POSSIBLE]
    _, residual = _down(settled, base.residual)
    least = max(base.noise, _SETTLED * float(np.mean(np.square(base.residual))))
    return float(np.mean(np.square(residual))) > least


def _is_significant(significance: Significance) -> bool:
    return significance.p_value <= ALPHA and significance.statistic > 0


def _is_large(one: _Selected, question: Question) -> bool:
    """Whether a cause makes more than noise does; exact arithmetic needs to take differences away."""
    delta = one.variant.delta(question.residual)
    if one.cause.tier == EXACT:
        size = float(np.sum(np.abs(question.residual)))
        return float(np.sum(np.abs(question.residual - delta))) <= (1 - _LEAST_GAIN) * size
    touched = delta != 0 if one.variant.excess is None else one.variant.excess > 0
    if not np.any(touched):
        return False
    noise = question.noise
    if question.repeated is not None and not np.all(np.isnan(question.repeated[touched])):
        # Some kinds of tokens differ more between repeats, too.
        noise = max(noise, FARTHEST * float(np.nanmean(question.repeated[touched])))
    return float(np.mean(np.square(question.residual[touched]))) > noise


def _first(believed: list[_Selected]) -> _Selected:
    """Returns the claim to believe first: exact arithmetic, then the fact or scan that fits best, then tails."""
    exact = [one for one in believed if one.cause.tier == EXACT]
    if exact:
        return max(exact, key=lambda one: one.significance.statistic)
    clear = [one for one in believed if one.cause.tier != TAIL]
    if clear:
        return max(clear, key=lambda one: one.fit * (_PREFERENCE if one.cause.tier == SCAN else 1.0))
    return min(believed, key=lambda one: one.cause.rung)


def _with_rivals(
    best: _Selected,
    believed: Sequence[_Selected],
    claims: Sequence[Claim],
    unclear: Sequence[Cause],
    question: Question,
) -> _Selected:
    """Returns a claim with its rivals: what would make the same, as far as the data tells.

    A rival is a fact that leaves nothing of the claim, and of which the claim leaves nothing. Of a fact it must be
    believed itself. Of a scan it need not be: where only long prompts are cut, say, hardly any like requests are left
    to hold that against. If it fits as well it takes the scan's place, for a setting that is known to differ is the
    likelier reason; and so does a fact that leaves nothing of the scan, and of which the scan leaves something. What
    the data cannot tell at all may be behind any scan.
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
            return _Selected(claim.cause, claim.variant(0), claim.verdict, own, claim.fit)
    named = tuple(claim.cause for claim in rivals)
    if is_scan and rivals and rivals[0].fit >= best.fit:
        likelier, others = rivals[0], (best.cause, *named[1:], *unclear)
        return _Selected(likelier.cause, likelier.variant(0), _POSSIBLE, best.significance, likelier.fit, others)
    named += tuple(unclear) if is_scan else ()
    return replace(best, verdict=_POSSIBLE, rivals=named) if named else best


def _stands(cause: Cause, question: Question) -> Significance | None:
    """Returns how a cause stands the test on what another one leaves; None where it is not believed there."""
    claim = cause.claim(question)
    if not isinstance(claim, Claim):
        return None
    (significance,) = judge([claim.test])
    one = _Selected(cause, claim.variant(significance.variant), claim.verdict, significance, claim.fit)
    return significance if _is_significant(significance) and _is_large(one, question) else None


def _explanation(
    base: Question,
    selected: list[_Selected],
    weak: list[_Selected],
    undecided: Mapping[str, str],
    noise: Noise,
    workspace: duckdb.DuckDBPyConnection,
) -> Explanation:
    tokens = base.tokens
    d = base.residual
    # A tail takes what is left, whichever way.
    tails = [one for one in selected if one.cause.tier == TAIL]
    steps = sorted((one for one in selected if one.cause.tier != TAIL), key=lambda one: one.cause.rung)
    ladder = [*steps, *tails]
    deltas, residual = _down(ladder, d)
    reversed_deltas, _ = _down([*steps[::-1], *tails], d)
    findings = [_finding(one, tokens, d, deltas[one.cause.name], reversed_deltas[one.cause.name]) for one in ladder]
    rungs = {one.cause.name: one.cause.rung for one in ladder}
    findings.sort(
        key=lambda one: (
            rungs[one.cause] >= _SEMANTICS or abs(one.shares["k2"]) < _LEAST_FIRST,
            -abs(one.shares["k2"]),
        )
    )
    _keep_deltas(tokens, deltas, workspace)
    sizes = {"k2": d * d / 2, "k3": np.where(d > 700, np.inf, np.expm1(np.minimum(d, 700)) - d), "abs": np.abs(d)}
    nothing = np.zeros_like(d)
    return Explanation(
        findings=findings,
        within_noise=[_finding(replace(one, verdict=_WITHIN_NOISE), tokens, d, nothing, nothing) for one in weak],
        undecided=dict(undecided),
        residual=share(residual, d),
        size={
            name: float(np.mean(values[tokens.finite])) if np.any(tokens.finite) else 0.0
            for name, values in sizes.items()
        },
        noise=noise,
        num_tokens=tokens.num,
        num_requests=tokens.num_requests,
        num_infinite=int(np.sum(~tokens.finite)),
        forks={row["cause"]: row["num"] for row in rows(workspace, query("forks"))},
        labels=_labels(deltas, d, noise),
        workspace=workspace,
    )


def _down(ladder: Sequence[_Selected], d: Floats) -> tuple[dict[str, Floats], Floats]:
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


def _finding(one: _Selected, tokens: Tokens, d: Floats, delta: Floats, delta_reversed: Floats) -> Finding:
    delta, delta_reversed = (np.where(tokens.finite, values, 0.0) for values in (delta, delta_reversed))
    (counted,) = tokens.connection.execute(f"SELECT count(*) FROM ({one.variant.query}) AS q").fetchall()[0]
    return Finding(
        cause=one.cause.name,
        title=one.cause.title,
        verdict=one.verdict,
        p_value=one.significance.p_value,
        parameters=one.variant.parameters,
        num_tokens=int(counted),
        shares=share(delta, d),
        shares_reversed=share(delta_reversed, d),
        sql=one.variant.query,
        next_step="; ".join(cause.next_step for cause in (one.cause, *one.rivals) if cause.next_step),
        settings=one.cause.settings,
        rivals=tuple(cause.name for cause in one.rivals),
    )


def _labels(deltas: Mapping[str, Floats], d: Floats, noise: Noise) -> dict[str, int]:
    """Returns how many tokens have which label: their largest contribution above the noise."""
    limit = np.sqrt(noise.mean_square)
    names = ["unexplained", *deltas]
    size = np.zeros_like(d) + limit
    label = np.zeros(len(d), np.int64)
    for number, delta in enumerate(deltas.values(), 1):
        larger = np.abs(delta) > size
        label[larger], size = number, np.where(larger, np.abs(delta), size)
    small = (label == 0) & (np.abs(d) <= limit)
    counts = np.bincount(label[~small], minlength=len(names))
    found = {name: int(count) for name, count in zip(names, counts, strict=True) if count}
    return {**found, "within noise": int(np.sum(small))} if np.any(small) else found


def _keep_deltas(tokens: Tokens, deltas: Mapping[str, Floats], workspace: duckdb.DuckDBPyConnection) -> None:
    """Makes the table `_deltas` of the workspace: contributions other than 0, by token and cause."""
    workspace.execute("CREATE TEMP TABLE _deltas (match_id INTEGER, output_index INTEGER, cause VARCHAR, delta DOUBLE)")
    for name, delta in deltas.items():
        touched = np.flatnonzero((delta != 0) & tokens.finite)
        place = tokens.place[touched]
        columns = {"match_id": place >> 32, "output_index": place & 0xFFFFFFFF, "delta": delta[touched]}
        workspace.register("_touched", pa.table(columns))
        workspace.execute("INSERT INTO _deltas SELECT match_id, output_index, $1, delta FROM _touched", [name])
        workspace.unregister("_touched")
