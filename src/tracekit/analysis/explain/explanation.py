"""Explains the differences of two traces: has causes selected, and gives each its share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from tracekit.analysis.explain.base import TAIL, Cause, Question
from tracekit.analysis.explain.noise import Noise, measure_noise, squares_of_repeats
from tracekit.analysis.explain.queries import all_queries, query
from tracekit.analysis.explain.registry import causes
from tracekit.analysis.explain.selection import Selected, down, select
from tracekit.analysis.explain.shares import Shares
from tracekit.analysis.explain.tokens import Bools, Floats, Tokens, rows
from tracekit.analysis.session import Session
from tracekit.errors import InputError

# Of fewer requests all are used both for choices and for estimates.
_FEWEST_TO_SPLIT = 40
_MOST_CHOSEN = 4000
# A step of the pipeline before this rung is one of the client's values, not of what was computed: it comes first if it
# carries so much of k2.
_SEMANTICS = 38
_LEAST_FIRST = 0.05
_WITHIN_NOISE = "within noise"


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
        excluded: tokens of which d is not finite, which no share counts: by cause, as in the view `excluded_tokens`.
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
    excluded: dict[str, int]
    forks: dict[str, int]
    labels: dict[str, int]
    workspace: duckdb.DuckDBPyConnection = field(repr=False, compare=False)

    @property
    def num_infinite(self) -> int:
        """Tokens of which d is not finite."""
        return sum(self.excluded.values())


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
    selected, weak, undecided = select(base, tried, tell)
    return _explanation(base, selected, weak, undecided, noise, workspace)


def _chosen(tokens: Tokens) -> Bools:
    """Returns by which requests claims choose, bool [R]: half of them, where there are many."""
    chosen = np.ones(tokens.num_requests, bool)
    if tokens.num_requests >= _FEWEST_TO_SPLIT:
        order = np.random.default_rng(0).permutation(tokens.num_requests)
        chosen[order[min(tokens.num_requests // 2, _MOST_CHOSEN) :]] = False
    return chosen


def _explanation(
    base: Question,
    selected: list[Selected],
    weak: list[Selected],
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
    deltas, residual = down(ladder, d)
    reversed_deltas, _ = down([*steps[::-1], *tails], d)
    shares = Shares(d)
    findings = [
        _finding(one, tokens, shares, deltas[one.cause.name], reversed_deltas[one.cause.name]) for one in ladder
    ]
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
        within_noise=[_finding(replace(one, verdict=_WITHIN_NOISE), tokens, shares, nothing, nothing) for one in weak],
        undecided=dict(undecided),
        residual=shares.of(residual),
        size={
            name: float(np.mean(values[tokens.finite])) if np.any(tokens.finite) else 0.0
            for name, values in sizes.items()
        },
        noise=noise,
        num_tokens=tokens.num,
        num_requests=tokens.num_requests,
        excluded=_counted(workspace, "excluded") if not np.all(tokens.finite) else {},
        forks=_counted(workspace, "forks"),
        labels=_labels(deltas, d, noise),
        workspace=workspace,
    )


def _counted(workspace: duckdb.DuckDBPyConnection, name: str) -> dict[str, int]:
    """Returns the numbers of a query by cause."""
    return {row["cause"]: row["num"] for row in rows(workspace, query(name))}


def _finding(one: Selected, tokens: Tokens, shares: Shares, delta: Floats, delta_reversed: Floats) -> Finding:
    delta, delta_reversed = (np.where(tokens.finite, values, 0.0) for values in (delta, delta_reversed))
    (counted,) = tokens.connection.execute(f"SELECT count(*) FROM ({one.variant.query}) AS q").fetchall()[0]
    return Finding(
        cause=one.cause.name,
        title=one.cause.title,
        verdict=one.verdict,
        p_value=one.significance.p_value,
        parameters=one.variant.parameters,
        num_tokens=int(counted),
        shares=shares.of(delta),
        shares_reversed=shares.of(delta_reversed),
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
