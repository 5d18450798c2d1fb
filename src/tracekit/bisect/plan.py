"""What a bisection is about to do: checked against both traces before anything is replayed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracekit.bisect.replays import Chosen, Replays
from tracekit.bisect.result import Planned, PlannedReplay
from tracekit.bisect.scores import Key, Scores
from tracekit.bisect.settings import Setting, Space, Varied, through_factors, varied_factors
from tracekit.bisect.shares import means
from tracekit.errors import ConfigError
from tracekit.replay.backends.base import load_backend
from tracekit.replay.plan import Plan as ReplayPlan
from tracekit.replay.runs import read_runs
from tracekit.replay.selection import Selection
from tracekit.store import Trace


@dataclass(frozen=True)
class Plan:
    """A bisection that can begin.

    Attributes:
        trace, against: the traces A and B.
        replays: makes replays of A.
        scores: of A and B.
        lengths: of the requests that each replay scores: prompt and output tokens.
        alignment: options of `connect`, for A and B.
        nulls: repeats of A's run.
        through: factors at whose other level A and B are compared too.
    """

    trace: Trace
    against: Trace
    replays: Replays
    scores: Scores
    lengths: Mapping[Key, tuple[int, int]]
    alignment: Mapping[str, Any]
    nulls: tuple[Trace, ...] = ()
    through: tuple[Varied, ...] = ()

    @property
    def num_tokens(self) -> int:
        """How many tokens each replay scores."""
        return sum(num_output for _, num_output in self.lengths.values())

    @property
    def varied(self) -> tuple[Varied, ...]:
        return tuple(one for one in self.replays.space.varied if one not in self.through)

    def singles(self) -> list[Setting]:
        """Returns the settings with one factor changed, in the order in which they are tried."""
        return [self.replays.space.setting({one.name: level}) for one in self.varied for level in one.others]

    def described(self) -> Planned:
        """Returns it as data."""
        return Planned(
            a=self.trace.path,
            b=self.against.path,
            basis=self.scores.basis,
            num_requests=len(self.lengths),
            num_tokens=self.num_tokens,
            num_pairs=self.scores.num_tokens,
            difference=means(self.scores.difference("a", "b")),
            replays=tuple(self._planned(setting) for setting in (Setting(), *self.singles())),
            most_combinations=self.most_combinations,
        )

    def _planned(self, setting: Setting) -> PlannedReplay:
        try:
            backend, options = self.replays.space.options(setting)
        except ConfigError as error:
            return PlannedReplay(setting.label, None, False, "", {}, str(error))
        path, is_there = self.replays.path(setting), self.replays.is_there(setting)
        return PlannedReplay(setting.label, path, is_there, backend, options)

    @property
    def most_combinations(self) -> int:
        """How many more replays there are at most, where no factor alone settles it."""
        num = len(self.varied)
        # Each of those left added to those that are found, all but each, and those on the way back.
        return 0 if num < 2 else num * (num - 1) // 2 + num + num - 2


def make_plan(
    trace: Trace | Path | str,
    against: Trace | Path | str,
    *,
    vary: Sequence[str] = (),
    backend: str = "hf",
    model: Path | str | None = None,
    out: Path | str,
    nulls: Iterable[Path | str] = (),
    only: Iterable[Key] | None = None,
    sample: int | None = None,
    limit: int | None = None,
    basis: str | None = None,
    any_tokenizer: bool = False,
    options: Mapping[str, Any] | None = None,
    alignment: Mapping[str, Any] | None = None,
    through: Sequence[str] = (),
) -> Plan:
    """Reads both traces, and proves that they align and that A can be replayed.

    Args:
        trace: the recorded side A.
        against: another trace of the same requests: B.
        vary: factors with or without levels, each as 'NAME[=LEVEL,LEVEL…],…'; by default all that the backend has.
        backend: of the replays.
        model: as the backend wants it named.
        out: the folder of the replays.
        nulls: repeats of A's run, which measure the noise.
        only, sample, limit: which requests, as for `replay`.
        basis: 'raw' or 'processed' logprobs; by default the first that both sides have.
        any_tokenizer: compare and replay also where the files of the tokenizers differ.
        options: further options of all replays.
        alignment: further options of `connect`, for A and B.
        through: factors, each with one level, as `vary`: the difference is also divided on the way through them.

    Raises:
        NotATraceError, TraceFormatError: a trace cannot be read.
        InputError: A has no sampled tokens, or a request without its prompt.
        AlignmentError: the traces do not align.
        ConfigError: an unknown backend, factor or level, or one that the backend lacks.
    """
    a = trace if isinstance(trace, Trace) else Trace(trace)
    b = against if isinstance(against, Trace) else Trace(against)
    repeats = tuple(Trace(path) for path in nulls)
    load_backend(backend)
    num_steps = a.num_rows("steps")
    runs = [{**run, "num_steps": num_steps} for run in read_runs(a)]
    way = through_factors(through, backend, runs)
    space = Space(backend, runs, [*_varied(vary, way, backend, runs), *way], options)
    chosen = Chosen(None if only is None else frozenset(only), sample, limit)
    scored = ReplayPlan(a, Selection(chosen.only, chosen.sample, chosen.limit))
    named = None if model is None else Path(model)
    replays = Replays(a, Path(out), space, model=named, chosen=chosen, any_tokenizer=any_tokenizer)
    pairing = {"any_tokenizer": any_tokenizer, **(alignment or {})}
    lengths = {one.key: (one.num_prompt_tokens, one.num_output_tokens) for one in scored.sequences}
    return Plan(a, b, replays, Scores(a, b, basis, pairing), lengths, pairing, repeats, tuple(way))


def _varied(
    vary: Sequence[str], way: Sequence[Varied], backend: str, runs: Sequence[Mapping[str, Any]]
) -> list[Varied]:
    """Returns the factors that are searched.

    Raises:
        ConfigError: the way leads through one that is named.
    """
    names = {one.name for one in way}
    found = varied_factors(vary, backend, runs)
    if vary and (both := [one.name for one in found if one.name in names]):
        raise ConfigError(f"factor '{both[0]}' is both varied and on the way; leave one out")
    return [one for one in found if one.name not in names]
