"""What a bisection found, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracekit.bisect.shares import Amounts

# Verdicts on factors.
MOVES = "moves A to B"
CONTAINED = "nearer to B, but not needed"
NO_MOVE = "does not move A to B"
NO_EFFECT = "no effect"
NOT_RUN = "cannot be run"
NOT_NEEDED = "not tried"

# What proved that reduced traces show a difference.
BY_SCORES = "the scores of both traces"
BY_REPLAY = "a replay of the reduced trace"


@dataclass(frozen=True)
class PlannedReplay:
    """A replay that a bisection may need.

    Attributes:
        label: its setting.
        path: where it stands, or will; None where a setting is impossible.
        is_there: whether it has been made.
        backend, options: what it is made with.
        reason: why it is impossible.
    """

    label: str
    path: Path | None
    is_there: bool
    backend: str
    options: Mapping[str, Any]
    reason: str | None = None


@dataclass(frozen=True)
class Planned:
    """What a bisection is about to do.

    Attributes:
        a, b: the traces.
        basis: 'raw' or 'processed': which logprobs are compared.
        num_requests, num_tokens: that each replay scores.
        num_pairs: tokens that A and B have in common.
        difference: between A and B, as means over these.
        replays: the baseline, then one factor changed at a time.
        most_combinations: how many replays of several changes there are more at most.
    """

    a: Path
    b: Path
    basis: str
    num_requests: int
    num_tokens: int
    num_pairs: int
    difference: Amounts
    replays: tuple[PlannedReplay, ...]
    most_combinations: int


@dataclass(frozen=True)
class Step:
    """A replay and how far it is from both sides.

    Attributes:
        label: its setting.
        path: the trace; None where it could not be made.
        is_reused: whether it was there before.
        seconds: that it took.
        to_a, to_b: how far its scores are from A's and from B's, as means over tokens.
        reason: why it could not be made.
    """

    label: str
    path: Path | None
    is_reused: bool
    seconds: float
    to_a: Amounts | None
    to_b: Amounts | None
    reason: str | None = None


@dataclass(frozen=True)
class FactorFound:
    """What became of a factor.

    Attributes:
        name, title: of the factor.
        baseline: its level at the baseline.
        level: the level that takes A nearest to B.
        verdict: one of the words above.
        removes: how much of the difference to B its level alone takes away from the baseline, in k2; None where it was
            not tried.
        share: its share of the difference, the mean of both orders; zero for what is not on the way.
        forward, reverse: its share where the factors change one after the other in this order, and in the other.
        detail: why it could not be run.
    """

    name: str
    title: str
    baseline: str
    level: str | None
    verdict: str
    removes: float | None
    share: Amounts
    forward: Amounts
    reverse: Amounts
    detail: str | None = None

    @property
    def interaction(self) -> Amounts:
        """How much the share depends on the order of the factors."""
        return self.forward - self.reverse


@dataclass(frozen=True)
class Stage:
    """A part of the way from A to B through a setting that both are brought to.

    Attributes:
        start, end: settings: of the replay before and of the one after.
        share: of the difference.
        size: how far the two replays are from each other, as means over tokens.
    """

    start: str
    end: str
    share: Amounts
    size: Amounts


@dataclass(frozen=True)
class Bisected:
    """The answer.

    Attributes:
        a, b: the traces.
        backend: of the replays.
        basis: 'raw' or 'processed': which logprobs were compared.
        num_requests, num_tokens: compared.
        num_left_out: tokens of A and B that were not, as a side or a replay has no finite logprob of them.
        difference: between A and B, as means over tokens.
        noise: of repeats, as means over tokens; without repeats, of the baseline's replay against A.
        noise_source: 'null' or 'baseline'.
        baseline_share: what the baseline's replay does not give back of A.
        residual_share: what is left between the last replay and B.
        factors: in the order in which they were asked for.
        target: the setting that takes A nearest to B.
        is_settled: whether what is left at the target is noise, or nearly nothing.
        reason: in one sentence, where the search ended, and by which rule.
        steps: all replays, in the order in which they were needed.
        way: from the baseline to the target through what was asked for; its shares add up to those of the factors.
    """

    a: Path
    b: Path
    backend: str
    basis: str
    num_requests: int
    num_tokens: int
    num_left_out: int
    difference: Amounts
    noise: Amounts
    noise_source: str
    baseline_share: Amounts
    residual_share: Amounts
    factors: tuple[FactorFound, ...]
    target: str
    is_settled: bool
    reason: str
    steps: tuple[Step, ...]
    way: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class Excerpt:
    """A trace that holds a part of another one.

    Attributes:
        path: the trace.
        num_tokens: rows of `tokens`.
        num_bytes: on disk.
        left_out: tables whose rows would have made it large.
    """

    path: Path
    num_tokens: int
    num_bytes: int
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Minimised:
    """Two small traces.

    Attributes:
        a, b: the excerpts.
        cuts: the requests of A, each with how many output tokens are kept.
        threshold: a token shows the difference where it is so large, in nat.
        request_id, output_index: the token that does.
        d: by how much, in the whole traces.
        evidence: what proved that the excerpt shows it.
        num_trials: sets of requests that were replayed.
    """

    a: Excerpt
    b: Excerpt
    cuts: Mapping[tuple[str, str], int]
    threshold: float
    request_id: str
    output_index: int
    d: float
    evidence: str
    num_trials: int
