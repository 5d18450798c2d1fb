"""What is varied, and the settings that replays are made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracekit.bisect.factors.base import Factor, Run, factor_names, factors_of, load_factor
from tracekit.errors import ConfigError, nearest


@dataclass(frozen=True)
class Varied:
    """A factor that is varied.

    Attributes:
        name: of the factor.
        title: for people.
        levels: the baseline's first.
    """

    name: str
    title: str
    levels: tuple[str, ...]

    @property
    def baseline(self) -> str:
        return self.levels[0]

    @property
    def others(self) -> tuple[str, ...]:
        return self.levels[1:]


@dataclass(frozen=True)
class Setting:
    """Which factors are not at their baseline.

    Attributes:
        changes: factors and their levels, in the order in which they are varied.
    """

    changes: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        return " + ".join(f"{name}={level}" for name, level in self.changes) or "baseline"

    def level(self, varied: Varied) -> str:
        """Returns a factor's level."""
        return dict(self.changes).get(varied.name, varied.baseline)


class Space:
    """All settings over some factors on one backend.

    Args:
        backend: of the replays, unless a factor names another one.
        runs: what the recorded side says of itself.
        varied: the factors.
        given: options of every replay; they are stronger than what the runs say, and no factor's own.

    Raises:
        ConfigError: an option that a factor sets.
    """

    def __init__(
        self, backend: str, runs: Sequence[Run], varied: Sequence[Varied], given: Mapping[str, Any] | None = None
    ) -> None:
        self.backend = backend
        self.varied = tuple(varied)
        self._runs = runs
        self._given = dict(given or {})
        for one in self.varied:
            for level in one.levels:
                self._check_given(one, level)

    def _check_given(self, one: Varied, level: str) -> None:
        factor = load_factor(one.name)
        for name in factor.options(level, self.backend):
            if name in self._given and name != "engine_arg":
                raise ConfigError(f"factor '{one.name}' sets the option '{name}', which is given too; leave one out")

    def setting(self, changes: Mapping[str, str]) -> Setting:
        """Returns the setting of some changes; those to the baseline are none."""
        found = ((one, changes.get(one.name, one.baseline)) for one in self.varied)
        return Setting(tuple((one.name, level) for one, level in found if level != one.baseline))

    def options(self, setting: Setting) -> tuple[str, dict[str, Any]]:
        """Returns the backend and the options of a setting's replay.

        Raises:
            ConfigError: a backend that one factor names lacks another one.
        """
        levels = {one.name: setting.level(one) for one in self.varied}
        engine = dict(load_factor("engine").options(levels["engine"], self.backend)) if "engine" in levels else {}
        backend = str(engine.pop("backend", self.backend))
        here = factors_of(backend)
        # Another backend is at its own baseline where nothing else is asked for: it may not have these levels.
        changed = dict(setting.changes) if backend != self.backend else levels
        changed = {name: level for name, level in changed.items() if name != "engine"}
        given = self._given if backend == self.backend else {}
        pinned: dict[str, Any] = {}
        for name, factor in here.items():
            if factor.is_pinned and name not in changed and (own := factor.levels(self._runs, backend)):
                pinned |= _without(factor.options(own[0], backend), given)
        options = _joined(pinned, given, engine)
        for name, level in changed.items():
            if name not in here:
                raise ConfigError(f"factor '{name}' cannot be varied on backend '{backend}'")
            options = _joined(options, here[name].options(level, backend))
        if options.get("mode") == "prefill" and options.get("schedule") == "recorded":
            # Prompt logprobs are made in batches of their own.
            del options["schedule"]
        return backend, options


def varied_factors(texts: Sequence[str], backend: str, runs: Sequence[Run]) -> list[Varied]:
    """Returns the factors to vary, with their levels.

    Args:
        texts: each a list 'NAME[=LEVEL,LEVEL…],…'. Without any, all that the backend has with more than one level.
        backend: of the replays.
        runs: what the recorded side says of itself.

    Raises:
        ConfigError: no such factor or level, one that the backend lacks, or one with nothing to vary.
    """
    here = factors_of(backend)
    found = []
    for name, named in (_parsed(texts) if texts else dict.fromkeys(here, ())).items():
        factor = load_factor(name)
        if name not in here:
            raise ConfigError(
                f"replay backend '{backend}' cannot vary '{name}'; it can vary {', '.join(here) or 'nothing'}"
                + (f"; '{name}' needs --backend {' or '.join(factor.backends)}" if factor.backends else "")
            )
        levels = _levels(name, factor, named, backend, runs)
        if len(levels) > 1:
            found.append(Varied(name, factor.title, levels))
        elif texts:
            raise ConfigError(f"factor '{name}' has no levels to suggest here; name some, e.g. --vary {name}=A,B")
    if not found:
        raise ConfigError(f"replay backend '{backend}' has nothing that bisect can vary{nearest('', ['hf', 'vllm'])}")
    return found


def through_factors(texts: Sequence[str], backend: str, runs: Sequence[Run]) -> list[Varied]:
    """Returns the factors that a way leads through, each with the baseline's level and one other.

    Raises:
        ConfigError: as `varied_factors`, or one with several levels.
    """
    found = varied_factors(texts, backend, runs) if texts else []
    for one in found:
        if len(one.others) > 1:
            raise ConfigError(f"the way leads through one level of '{one.name}', not through {', '.join(one.others)}")
    return found


def _levels(name: str, factor: Factor, named: Sequence[str], backend: str, runs: Sequence[Run]) -> tuple[str, ...]:
    own = factor.levels(runs, backend)
    for level in named:
        factor.options(level, backend)
    if not named:
        return own
    if name == "engine" and backend not in named and len(named) == 1:
        # One engine is another than the one that replays anyway.
        return (backend, *named)
    # Where the recording's own level is named, or only one other is, the baseline is the recording's own.
    if own and (own[0] in named or len(named) == 1):
        return tuple(dict.fromkeys((own[0], *named)))
    return tuple(dict.fromkeys(named))


def _parsed(texts: Sequence[str]) -> dict[str, list[str]]:
    """Reads 'head,dtype=bfloat16,float32': what follows a level is a level too, unless it is a factor's name."""
    known = factor_names()
    found: dict[str, list[str]] = {}
    for text in texts:
        has_levels = None
        for piece in (piece.strip() for piece in text.split(",")):
            name, equals, level = piece.partition("=")
            if has_levels is not None and not equals and piece not in known:
                found[has_levels].append(piece)
                continue
            name = name.replace("-", "_")
            if name not in known:
                raise ConfigError(f"there is no factor '{name}'{nearest(name, known)}")
            if name in found:
                raise ConfigError(f"factor '{name}' is named twice")
            found[name] = [level] if equals else []
            has_levels = name if equals else None
    return found


def _without(options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in given or name == "engine_arg"}


def _joined(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all options; lists of several parts stand behind each other, so that the last wins."""
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = (*found[name], *value) if isinstance(value, tuple) and name in found else value
    return found
