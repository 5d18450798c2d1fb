"""Requirements on the figures of a comparison, and whether they hold."""

from __future__ import annotations

import operator
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tracekit.analysis.figures import MEASURED, REQUESTS, Figure
from tracekit.errors import ConfigError, nearest

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
_REQUIREMENT = re.compile(r"\s*(?:(raw|processed|requests)\.)?(\w+)\s*(<=|>=|==|<|>)\s*(.+?)\s*$")
_FLOOR = re.compile(r"(?:([0-9.eE+-]+)\s*\*\s*)?floor$")
# Which basis a name without one means: the first that has it.
_BASES = ("processed", "raw", REQUESTS)

# What is required where nothing is: to be as repeats are.
_NO_FARTHER = ("k3_kl", "logprob_abs_diff_mean", "first_divergence_rate")

PASS = "pass"
FAIL = "FAIL"
NOISE = "within noise"
NO_DATA = "NO DATA"


@dataclass(frozen=True)
class Requirement:
    """A bound on one figure.

    Attributes:
        text: as the user wrote it.
        basis: which of the figures of this name; None for processed where there is one, else raw.
        name: of the figure.
        comparison: <, <=, >, >= or ==.
        bound: a number, or the factor of the noise floor.
        of_floor: whether the bound is such a factor.
    """

    text: str
    basis: str | None
    name: str
    comparison: str
    bound: float
    of_floor: bool = False

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Reads 'k3_kl < 1e-3', 'raw.same_top_p >= 0.99' or 'k3_kl <= 2 * floor'.

        Raises:
            ConfigError: it is not of this form.
        """
        found = _REQUIREMENT.match(text)
        bound = _bound(found[4]) if found else None
        if found is None or bound is None:
            raise ConfigError(
                f"requirement '{text}' is not of the form [BASIS.]METRIC <|<=|>|>=|== NUMBER, e.g. 'k3_kl < 1e-3', "
                "or with 'N * floor' in place of the number"
            )
        return cls(text.strip(), found[1], found[2], found[3], *bound)


@dataclass(frozen=True)
class Verdict:
    """What became of a requirement.

    Attributes:
        requirement: the requirement.
        figure: what it is about.
        bound: the number that the figure is held against; None where the floor that it names is not known.
        outcome: PASS, FAIL, NOISE (it fails, but repeats of one run may differ as much: counted as passed), or NO_DATA
            (there is no such figure in these traces: counted as failed).
        is_settled: whether the whole interval is on the same side of the bound; None without an interval.
    """

    requirement: Requirement
    figure: Figure
    bound: float | None
    outcome: str
    is_settled: bool | None

    @property
    def passed(self) -> bool:
        return self.outcome in (PASS, NOISE)


def judge(requirements: Sequence[Requirement], figures: Sequence[Figure]) -> list[Verdict]:
    """Holds figures against requirements.

    Raises:
        ConfigError: a requirement names no figure.
    """
    known = {(figure.basis, figure.name): figure for figure in figures}
    return [_judge(requirement, _found(requirement, known)) for requirement in requirements]


def no_farther(figures: Sequence[Figure]) -> list[Requirement]:
    """Returns what is required where a user has only measured the floor: that A and B differ as repeats do.

    Of each metric that is on the processed basis where it has a value there, else on the raw one: greedy tokens are on
    that alone.
    """
    found = {(figure.basis, figure.name) for figure in figures if figure.value is not None}
    bases = {name: next((basis for basis in _BASES if (basis, name) in found), None) for name in _NO_FARTHER}
    return [
        Requirement.parse(f"{basis}.{name} <= floor" if basis else f"{name} <= floor") for name, basis in bases.items()
    ]


@dataclass(frozen=True)
class GateConfig:
    """What a gate's file may say.

    Attributes:
        require: requirements.
        null: traces of repeats, relative to the file.
        align: as of `diff`.
        partial: likewise.
        any_tokenizer: likewise.
    """

    require: tuple[str, ...] = ()
    null: tuple[str, ...] = ()
    align: str | None = None
    partial: bool = False
    any_tokenizer: bool = False

    @classmethod
    def read(cls, path: Path) -> GateConfig:
        """Reads a TOML file.

        Raises:
            ConfigError: it is not there, is no TOML, or has an unknown key or a value of another type; names it.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}); give --config a TOML file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no TOML file: {error}") from error
        known = {field.name for field in fields(cls)}
        for key, value in values.items():
            if key not in known:
                raise ConfigError(f"{path}: no key '{key}'{nearest(key, known)}")
            _check_type(path, key, value)
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})


def _check_type(path: Path, key: str, value: Any) -> None:
    if key in ("require", "null"):
        fits, wanted = isinstance(value, list) and all(isinstance(entry, str) for entry in value), "a list of strings"
    elif key == "align":
        fits, wanted = isinstance(value, str), "a string"
    else:
        fits, wanted = isinstance(value, bool), "true or false"
    if not fits:
        raise ConfigError(f"{path}: '{key}' is {value!r}, it must be {wanted}")


def _bound(text: str) -> tuple[float, bool] | None:
    floor = _FLOOR.match(text)
    try:
        return (float(floor[1] or 1), True) if floor else (float(text), False)
    except ValueError:
        return None


def _found(requirement: Requirement, known: Mapping[tuple[str, str], Figure]) -> Figure:
    bases = (requirement.basis,) if requirement.basis else _BASES
    for basis in bases:
        if (basis, requirement.name) in known:
            return known[basis, requirement.name]
    names = {name for basis, name in known if basis in bases}
    where = f" on the {requirement.basis} basis" if requirement.basis else ""
    raise ConfigError(
        f"requirement '{requirement.text}': no figure '{requirement.name}'{where}{nearest(requirement.name, names)}"
    )


def _judge(requirement: Requirement, figure: Figure) -> Verdict:
    bound: float | None = requirement.bound
    if requirement.of_floor:
        bound = None if figure.floor is None else requirement.bound * figure.floor
    if figure.value is None or bound is None:
        return Verdict(requirement, figure, bound, NO_DATA, None)
    holds = _OPERATORS[requirement.comparison]
    ends = None if figure.low is None or figure.high is None else {holds(figure.low, bound), holds(figure.high, bound)}
    passed = holds(figure.value, bound)
    noise = not passed and figure.within_floor and figure.floor_source == MEASURED
    return Verdict(
        requirement,
        figure,
        bound,
        PASS if passed else NOISE if noise else FAIL,
        None if ends is None else ends == {passed},
    )
