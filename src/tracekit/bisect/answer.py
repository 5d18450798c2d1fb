"""From the replays that were made to shares: the factors change one after the other, in one order and in the other."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tracekit.bisect import result
from tracekit.bisect.result import Bisected, FactorFound, Stage
from tracekit.bisect.rules import Rules
from tracekit.bisect.runs import BASELINE, Runs
from tracekit.bisect.settings import Varied
from tracekit.bisect.shares import NOTHING, Amounts, means, share


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        names: the factors that take A to B, in the order in which they do it.
        nearest: by factor that was tried, the level that is nearest to B.
    """

    names: tuple[str, ...]
    nearest: Mapping[str, str]

    def changes(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self.nearest[name] for name in names}


def answer(runs: Runs, rules: Rules, found: Found, noise: Amounts) -> Bisected:
    """Returns what was found.

    Args:
        runs: the replays; the ones that the other order needs are made.
        rules: when it is settled.
        found: by the search.
        noise: of repeats, or of the baseline's replay.
    """
    forward = _shares(runs, found, found.names)
    # Where a setting of the other order cannot be replayed, nothing is known of the interaction.
    reverse = _shares(runs, found, found.names[::-1]) or forward
    scores, plan = runs.scores, runs.plan
    ends = (NOTHING, NOTHING)
    target = BASELINE
    if rules.difference:
        target = runs.make(found.changes(found.names))
        d = scores.difference("a", "b")
        ends = (share(scores.difference("a", BASELINE), d), share(scores.difference(target, "b"), d))
    is_settled = not rules.difference or rules.reaches(runs.left(target))
    # It makes replays, which may lack tokens: before anything is counted.
    way = _way(runs, found) if rules.difference else ()
    return Bisected(
        a=plan.trace.path,
        b=plan.against.path,
        backend=plan.replays.space.backend,
        basis=scores.basis,
        num_requests=scores.num_requests,
        num_tokens=scores.num_tokens,
        num_left_out=scores.num_left_out,
        difference=runs.difference(),
        noise=noise,
        noise_source="null" if plan.nulls else "baseline",
        baseline_share=ends[0],
        residual_share=ends[1],
        factors=tuple(_factor(runs, rules, found, one, forward or {}, reverse or {}) for one in plan.varied),
        target=target,
        is_settled=is_settled,
        reason=_reason(runs, rules, found, target, is_settled=is_settled),
        steps=runs.steps(),
        way=way,
    )


def _way(runs: Runs, found: Found) -> tuple[Stage, ...]:
    """Returns the way from the baseline to the target; nothing where none was asked for or a part cannot be run."""
    through = {one.name: one.others[0] for one in runs.plan.through}
    if not through or not found.names:
        return ()
    target = found.changes(found.names)
    inwards = [dict(itertools.islice(through.items(), number)) for number in range(len(through) + 1)]
    labels = [runs.attempt(changes) for changes in (*inwards, *({**target, **changes} for changes in inwards[::-1]))]
    if None in labels:
        return ()
    d = runs.scores.difference("a", "b")
    stages = []
    for start, end in itertools.pairwise(map(str, labels)):
        delta = runs.scores.difference(start, end)
        stages.append(Stage(start, end, share(delta, d), means(delta)))
    return tuple(stages)


def _shares(runs: Runs, found: Found, order: Sequence[str]) -> dict[str, Amounts] | None:
    """Returns each factor's share where they change in this order; None where a setting cannot be replayed."""
    labels = [runs.attempt(found.changes(order[:number])) for number in range(len(order) + 1)] if order else []
    if None in labels:
        return None
    d = runs.scores.difference("a", "b")
    return {
        name: share(runs.scores.difference(str(before), str(after)), d)
        for name, before, after in zip(order, labels[:-1], labels[1:], strict=True)
    }


def _factor(
    runs: Runs,
    rules: Rules,
    found: Found,
    one: Varied,
    forward: Mapping[str, Amounts],
    reverse: Mapping[str, Amounts],
) -> FactorFound:
    level = found.nearest.get(one.name)
    label = None if level is None else runs.attempt({one.name: level})
    detail = next((why for other in one.others if (why := runs.why_not({one.name: other}))), None)
    first, second = forward.get(one.name, NOTHING), reverse.get(one.name, NOTHING)
    removes = None
    if label is not None and (at_baseline := runs.left(BASELINE)):
        removes = 1 - runs.left(label) / at_baseline
    return FactorFound(
        name=one.name,
        title=one.title,
        baseline=one.baseline,
        level=level,
        verdict=_verdict(runs, rules, one.name in found.names, label, detail),
        removes=removes,
        share=(first + second) * 0.5,
        forward=first,
        reverse=second,
        detail=detail,
    )


def _verdict(runs: Runs, rules: Rules, is_chosen: bool, label: str | None, detail: str | None) -> str:
    if is_chosen:
        return result.MOVES
    if label is None:
        return result.NOT_RUN if detail else result.NOT_NEEDED
    if not np.any(runs.scores.difference(BASELINE, label)):
        return result.NO_EFFECT
    return result.CONTAINED if rules.is_nearer(runs.scores, BASELINE, label) else result.NO_MOVE


def _reason(runs: Runs, rules: Rules, found: Found, target: str, *, is_settled: bool) -> str:
    if not rules.difference:
        return "A and B do not differ in any token, so nothing was replayed"
    left = runs.left(target) / rules.difference
    bound = "the noise" if rules.enough == rules.noise else "a hundredth of the difference"
    if is_settled and not found.names:
        text = (
            f"the baseline's replay reaches B: it leaves {left:.1%} of the difference, no more than {bound}; A differs"
        )
        text += " from both, by what no factor here changes"
    elif is_settled:
        alone = "alone takes" if len(found.names) == 1 else "together take"
        text = f"{target} {alone} A to B: {left:.1%} of the difference is left, no more than {bound}"
    elif found.names:
        text = f"{target} is the nearest to B that was found, and leaves {left:.1%} of the difference"
    else:
        text = f"no factor takes A nearer to B: the baseline's replay leaves {left:.1%} of the difference"
    if not rules.noise_is_clear:
        what = "repeats differ from A" if runs.plan.nulls else "the baseline's replay differs from A"
        text += (
            f". But {what} by {rules.noise / rules.difference:.0%} of the difference, so smaller shares say nothing: "
            "replay with the engine that recorded, or give --null"
        )
    return text
