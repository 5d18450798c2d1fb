"""What `tracekit explain` says of a trial, run as a user would, held against what was planted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from click.testing import CliRunner
from trial import Expected, Trial

from tracekit.cli.main import cli

# A parameter is right within this, relative.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Named:
    """A cause that was found."""

    cause: str
    verdict: str
    share: float
    parameters: dict[str, Any]
    p_value: float | None


@dataclass(frozen=True)
class Outcome:
    """A trial's result.

    Attributes:
        kind: single, pair or null.
        seed: of the trial.
        expected: what was planted.
        found: what was found, in its order.
        forks: where tokens differ: requests by cause.
        undecided: causes that the recorded data cannot decide.
        size: root mean square of d.
        num_tokens: that were compared.
    """

    kind: str
    seed: list[int]
    expected: tuple[Expected, ...]
    found: tuple[Named, ...]
    forks: dict[str, int]
    undecided: tuple[str, ...]
    size: float
    num_tokens: int

    @property
    def first(self) -> str:
        # Where tokens differ and d does not, the cause of most forks.
        forks = max(self.forks, key=lambda cause: self.forks[cause], default="nothing")
        return self.found[0].cause if self.found else forks if self.shows_in_tokens else "nothing"

    @property
    def shows_in_tokens(self) -> bool:
        return any(expected.share is None for expected in self.expected)

    @property
    def first_is_right(self) -> bool:
        return any(self.first in expected.names for expected in self.expected)

    @property
    def all_names(self) -> tuple[str, ...]:
        """Returns the causes of both findings and forks."""
        return (*(found.cause for found in self.found), *self.forks)

    def finding(self, expected: Expected) -> Named | None:
        """Returns what was found of a planted cause: by its own name first, then by another one for the same."""
        for name in expected.names:
            for found in self.found:
                if found.cause == name:
                    return found
        return None

    @property
    def all_found(self) -> bool:
        return all(set(expected.names) & set(self.all_names) for expected in self.expected)

    def share_errors(self) -> list[float]:
        """Returns found less planted shares of k2, of the causes that were found."""
        pairs = ((expected.share, self.finding(expected)) for expected in self.expected)
        return [found.share - share for share, found in pairs if share is not None and found is not None]

    def parameter_errors(self) -> list[tuple[str, float | None]]:
        """Returns by name how far each parameter of a found cause is off, relative; None where none was told."""
        errors: list[tuple[str, float | None]] = []
        for expected in self.expected:
            found = self.finding(expected)
            for name, value in expected.parameters.items() if found else ():
                told = estimate(found.parameters, name) if found else None
                errors.append((f"{expected.cause}.{name}", None if told is None else abs(told - value) / abs(value)))
        return errors

    def as_json(self) -> str:
        """Returns it on one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """Reads what `as_json` wrote."""
        document = json.loads(text)
        expected = tuple(Expected(**{**row, "names": tuple(row["names"])}) for row in document.pop("expected"))
        found = tuple(Named(**row) for row in document.pop("found"))
        return cls(**{**document, "undecided": tuple(document["undecided"])}, expected=expected, found=found)


def estimate(parameters: Mapping[str, Any], name: str) -> float | None:
    """Returns the number that a finding gives for a parameter: under its name, or first in a list of that name."""
    value = parameters.get(name, parameters.get(f"{name}s"))
    if isinstance(value, list):
        value = value[0] if value else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def score(trial: Trial, kind: str, seed: list[int]) -> Outcome:
    """Asks for an explanation.

    Raises:
        RuntimeError: the command failed.
    """
    command = ["explain", str(trial.a), str(trial.b), "--format", "json"]
    command += ["--null", str(trial.null)] if trial.null else []
    # In this process, which has imported everything: thousands of trials are made.
    done = CliRunner().invoke(cli, command)
    if done.exit_code:
        told = f"{done.output[-2000:]} {done.exception!r}"
        raise RuntimeError(f"tracekit {' '.join(command)} ended with exit code {done.exit_code}: {told}")
    document = json.loads(done.stdout)
    found = tuple(
        Named(row["cause"], row["verdict"], row["shares"]["k2"], row["parameters"], row["p_value"])
        for row in document["findings"]
    )
    undecided = tuple(document["undecided"])
    return Outcome(kind, seed, trial.expected, found, document["forks"], undecided, trial.size, trial.num_tokens)
