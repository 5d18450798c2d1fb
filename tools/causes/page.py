"""What the benchmark of causes found: figures for the terminal, and the page in docs/."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scoring import TOLERANCE, Outcome

# Points of a share that count as right.
SHARE_TOLERANCE = 0.10

INTRODUCTION = """# The benchmark of causes

Written by `make bench-causes` (`tools/causes/run.py`). Known causes are planted into real recordings of vLLM
0.32.0 (SmolLM2-135M, bf16, on a CPU), at random strengths, and `tracekit explain A B --null A2 --format json`
is asked what they are. Each trial draws its requests anew. B is the same tokens through the same engine
once more, so a repeat's own noise lies under every fault. Faults are exact arithmetic on whole rows of recorded
logits, in float64 NumPy, or rows of the same engine with the fault in it: other weights (every matrix moved
at random), 8-bit weights, rotary embeddings scaled for longer contexts; an error in the body is a part of the
difference that other weights make, and two errors are of different other weights. Plants and `explain` share no
code. `tools/causes/plants/` has one file a plant. The share of a plant is the covariance of what it adds with
the whole difference.
"""


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns the figures that are required, and whether they are met."""
    singles, pairs, nulls = (_of(outcomes, kind) for kind in ("single", "pair", "null"))
    lines = []
    if singles:
        lines.append(_rate("first cause right", sum(o.first_is_right for o in singles), len(singles), 0.95))
    if pairs:
        lines.append(_rate("pairs, both found", sum(o.all_found for o in pairs), len(pairs), 0.85))
    shares = np.abs([error for o in (*singles, *pairs) for error in o.share_errors()])
    if len(shares):
        lines.append(_rate("shares within 10 points", int(np.sum(shares <= SHARE_TOLERANCE)), len(shares), 1.0))
        lines.append(f"shares off by {_spread(shares * 100)} points")
    errors = [error for o in (*singles, *pairs) for _, error in o.parameter_errors()]
    if errors:
        right = sum(error is not None and error <= TOLERANCE for error in errors)
        lines.append(_rate("parameters within 5%", right, len(errors), 1.0))
    if nulls:
        alarms = sum(bool(o.found) for o in nulls)
        verdict = "met" if alarms <= 0.02 * len(nulls) else "MISSED"
        lines.append(
            f"A/A pairs with a finding: {alarms} of {len(nulls)} ({alarms / len(nulls):.1%}, at most 2%)  [{verdict}]"
        )
    return lines


def page(outcomes: Sequence[Outcome]) -> str:
    """Returns the page, in Markdown."""
    singles, pairs, nulls = (_of(outcomes, kind) for kind in ("single", "pair", "null"))
    of = f"Of {len(singles)} trials with one cause, {len(pairs)} with two, and {len(nulls)} with none:"
    lines = [INTRODUCTION, of, "", *(f"- {line}" for line in summary(outcomes)), ""]
    if singles:
        lines += ["## One cause", "", *_each(singles), "", "## Confusion matrix", "", *_confusion(singles), ""]
    if pairs:
        lines += ["## Two causes", "", *_pairs(pairs), ""]
    alarms = Counter(named.cause for o in nulls for named in o.found)
    lines += ["## False alarms", "", "| cause | A/A pairs |", "|---|---|"]
    lines += [f"| {cause} | {num} |" for cause, num in alarms.most_common()] or ["| none | 0 |"]
    return "\n".join(lines) + "\n"


def _of(outcomes: Iterable[Outcome], kind: str) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.kind == kind]


def _rate(what: str, num: int, of: int, least: float) -> str:
    return f"{what}: {num} of {of} ({num / of:.1%}, at least {least:.0%})  [{'met' if num >= least * of else 'MISSED'}]"


def _spread(values: np.ndarray) -> str:
    return f"{np.median(values):.1f} (median), {np.quantile(values, 0.9):.1f} (90%), {np.max(values):.1f} (largest)"


def _by_plant(singles: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for outcome in singles:
        found.setdefault(outcome.expected[0].plant, []).append(outcome)
    return found


def _each(singles: Sequence[Outcome]) -> Iterator[str]:
    columns = (
        "plant, cause, trials, rms of d (nat), first right, found, share planted, share off (points), parameters off"
    )
    yield "| " + " | ".join(columns.split(", ")) + " |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for plant, trials in _by_plant(singles).items():
        causes = ", ".join(dict.fromkeys(expected.cause for expected in trials[0].expected))
        sizes = [outcome.size for outcome in trials]
        planted = [expected.share for o in trials for expected in o.expected if expected.share is not None]
        off = np.abs([error for o in trials for error in o.share_errors()]) * 100
        parameters: dict[str, list[float | None]] = {}
        for outcome in trials:
            for name, error in outcome.parameter_errors():
                parameters.setdefault(name, []).append(error)
        yield (
            f"| {plant} | {causes} | {len(trials)} | {min(sizes):.3f} to {max(sizes):.3f} "
            f"| {sum(o.first_is_right for o in trials)} | {sum(o.all_found for o in trials)} "
            f"| {f'{min(planted):.0%} to {max(planted):.0%}' if planted else 'in tokens'} "
            f"| {f'{np.median(off):.1f}, {np.max(off):.1f} at most' if len(off) else ''} "
            f"| {'; '.join(_parameter(*item) for item in parameters.items())} |"
        )


def _parameter(name: str, errors: list[float | None]) -> str:
    known = [error for error in errors if error is not None]
    missing = f", not told in {len(errors) - len(known)}" if len(known) < len(errors) else ""
    return f"{name} {f'{max(known):.1%} at most' if known else ''}{missing}"


def _confusion(singles: Sequence[Outcome]) -> Iterator[str]:
    yield "Rows: what was planted. Columns: the cause that came first."
    yield ""
    columns = sorted({outcome.first for outcome in singles})
    yield "| | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for plant, trials in _by_plant(singles).items():
        counts = Counter(outcome.first for outcome in trials)
        yield f"| {plant} | " + " | ".join(str(counts[column] or "") for column in columns) + " |"


def _pairs(pairs: Sequence[Outcome]) -> Iterator[str]:
    yield "| planted, share of k2 | found, share of k2 | both found |"
    yield "|---|---|---|"
    for outcome in pairs:
        planted = ", ".join(f"{e.plant}{'' if e.share is None else f' {e.share:.0%}'}" for e in outcome.expected)
        found = ", ".join(f"{named.cause} {named.share:.0%}" for named in outcome.found) or "nothing"
        yield f"| {planted} | {found} | {'yes' if outcome.all_found else 'no'} |"
