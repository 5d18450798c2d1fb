"""What a plant is: one known cause, put into one of two real recordings of the same requests."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from arithmetic import to_bf16
from numpy.random import Generator
from side import Key, Recording, Side

Role = Literal["record", "replay", "trainer"]
REFERENCE, FORCED = "reference", "forced"
# Other weights, moved at random, each another way.
PERTURBED = ("perturbed-0", "perturbed-1")


class Base:
    """The recordings that faults are planted into, opened when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._recordings: dict[str, Recording] = {}
        self._head: np.ndarray[Any, Any] | None = None

    def __getitem__(self, name: str) -> Recording:
        if name not in self._recordings:
            known = None if name == REFERENCE else self[REFERENCE].names
            self._recordings[name] = Recording(self.folder / name, known)
        return self._recordings[name]

    @property
    def repeats(self) -> list[str]:
        """Names of the repeats of the reference."""
        return sorted(path.name for path in self.folder.glob("repeat-*") if path.is_dir())

    @property
    def head(self) -> np.ndarray[Any, Any]:
        """The last projection's weights, float32 [V, H]."""
        if self._head is None:
            self._head = np.load(self.folder / "head.npy", mmap_mode="r")
        return self._head


@dataclass
class Pair:
    """Two sides of a trial, and what plants say of them.

    Attributes:
        a: the rollout.
        b: what it is compared with: the same tokens through the same engine once more, or a copy.
        base: where more recordings are.
        role: of b's trace.
    """

    a: Side
    b: Side
    base: Base
    role: Role = "replay"
    _unused: list[str] = field(default_factory=lambda: list(PERTURBED))

    def perturbed(self) -> str:
        """Returns a recording under other weights, each time another one: two faults do not err the same way.

        Raises:
            IndexError: there is no other one left.
        """
        return self._unused.pop(0)

    def differences(self) -> dict[Key, float]:
        """Returns d of each token that both sides have."""
        a, b = self.a.values(), self.b.values()
        return {key: b[key] - a[key] for key in a.keys() & b.keys()}


@dataclass(frozen=True)
class Truth:
    """What was planted.

    Attributes:
        cause: its name.
        parameters: what can be estimated, by name.
    """

    cause: str
    parameters: Mapping[str, float] = field(default_factory=dict)


class Plant(ABC):
    """A cause that can be planted. Each is one file in `plants`, found by its class.

    Attributes:
        name: of the plant.
        cause: the cause that should be named; the names that count as right are it and `also`.
        also: other names for the same thing.
        stage: its place on the way from the client to the weights; of two plants the lower comes first.
        base: the recording that B is; "self" is a copy of A, for causes far below the noise of a repeat.
        num_requests: how many requests a trial has.
        is_fork: whether it shows in which tokens differ, not in d.
        in_pairs: whether it can be planted beside another cause.
        alone_in_stage: whether another of its stage would write over what it sets.
    """

    name: ClassVar[str]
    cause: ClassVar[str]
    also: ClassVar[tuple[str, ...]] = ()
    stage: ClassVar[int]
    base: ClassVar[str] = "forced"
    num_requests: ClassVar[int] = 120
    is_fork: ClassVar[bool] = False
    in_pairs: ClassVar[bool] = True
    alone_in_stage: ClassVar[bool] = False

    def wants(self, request: Mapping[str, Any]) -> bool:
        """Whether a request may be in a trial, by its row in `requests`."""
        return True

    def shows(self, request: Mapping[str, Any]) -> bool:
        """Whether the fault can show in a request."""
        return True

    @abstractmethod
    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        """Puts the fault into a pair, at a random strength.

        Yields what is true, each time as soon as it is in: what d changed by is its contribution.
        """


def log_uniform(chance: Generator, low: float, high: float) -> float:
    """Returns a number of random size between two bounds."""
    return math.exp(chance.uniform(math.log(low), math.log(high)))


def report(side: Side) -> None:
    """Lets a side's client get the engine's processed logprobs, if it has none yet."""
    if side.client.kind == "none":
        side.client = replace(side.client, kind="reported")


def train(pair: Pair) -> None:
    """Makes B the trace of a trainer, which has one figure a token and nothing else."""
    pair.role = "trainer"
    pair.b.client = replace(pair.b.client, kind="trainer")


def body_error(chance: Generator) -> float:
    """Returns a random size of an error in the body, for `mix`: well above what a repeat makes, below another model."""
    return log_uniform(chance, 0.25, 0.8)


def mix(pair: Pair, side: Side, strength: Mapping[Key, float], *, other: str | None = None) -> None:
    """Moves a side's rows towards those of another real recording of the same tokens.

    Args:
        pair: the trial.
        side: of it.
        strength: by token, 0 leaves the row and 1 takes the other's.
        other: the recording with the fault; by default one under other weights.
    """
    recording, own = pair.base[other or pair.perturbed()], pair.base[FORCED]

    def change(key: Key, row: Any) -> Any:
        share = strength.get(key, 0.0)
        # What the head gives out is rounded there, whatever the body is.
        return to_bf16(row + share * (recording.logits(key) - own.logits(key))) if share else None

    side.add(change)
