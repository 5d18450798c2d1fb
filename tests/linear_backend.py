"""A replay backend and its factors, as another package would bring them, whose scores are a known sum.

A token's logprob is its base, and what each factor that is on adds to it; all of them are whole sixty-fourths, which
float32 holds exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tracekit.bisect.factors.base import Run, known_level, said
from tracekit.errors import ModelError
from tracekit.replay.backends.base import Backend, BatchLimits, Kept, Rows, RunRows
from tracekit.replay.backends.base import Sequence as RecordedSequence

# Requests of which the second is scored otherwise beside the first.
NEIGHBOURS = ("r02", "r05")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LinearOptions:
    """Which factors are on; `both` adds something only where x and y are, which add nothing where not `alone`; `needy`
    is possible only where y is on, and `deaf` is passed over."""

    x: bool = False
    y: bool = False
    z: bool = False
    both: bool = False
    alone: bool = True
    neighbour: bool = False
    broken: bool = False
    needy: bool = False
    deaf: bool = False


def base(token_ids: Sequence[int]) -> Floats:
    """Returns the logprobs [T] of tokens where no factor is on."""
    return -1 - (np.cumsum(token_ids) % 97) / 64


def effect(name: str, token_ids: Sequence[int]) -> Floats:
    """Returns what a factor adds to the logprobs [T] of tokens."""
    multiple, modulus = {
        "x": (7, 31),
        "y": (5, 17),
        "z": (3, 11),
        "both": (11, 29),
        "neighbour": (13, 37),
        "needy": (17, 41),
    }[name]
    return ((np.cumsum(token_ids) * multiple % modulus) - modulus // 2) / 64


def scores(options: LinearOptions, request_id: str, token_ids: Sequence[int], batch: Sequence[str] = ()) -> Floats:
    """Returns the logprobs [T] of a sequence that is scored in a batch of these requests."""
    found = base(token_ids)
    for name in ("x", "y", "z"):
        found += effect(name, token_ids) * (getattr(options, name) and (options.alone or name == "z"))
    found += effect("needy", token_ids) * options.needy
    found += effect("both", token_ids) * (options.both and options.x and options.y)
    beside = request_id == NEIGHBOURS[1] and NEIGHBOURS[0] in batch
    return found + effect("neighbour", token_ids) * (options.neighbour and beside)


class LinearBackend(Backend):
    options_type = LinearOptions
    vocab_size = 1000

    def __init__(self, options: LinearOptions) -> None:
        self._options = options
        self.batch_limits = BatchLimits(num_tokens=None)

    @classmethod
    def open(cls, model: Path | None, options: LinearOptions, kept: Kept) -> Self:  # noqa: ARG003
        if options.broken:
            raise ModelError("it is broken")
        if options.needy and not options.y:
            raise ModelError("it needs y")
        return cls(options)

    def description(self) -> Mapping[str, Any]:
        return {"engine": "linear", "engine_version": "1"}

    def score(self, batch: Sequence[RecordedSequence]) -> Iterator[Rows | RunRows]:
        names = [sequence.request_id for sequence in batch]
        for sequence in batch:
            ids = sequence.output_ids.tolist()
            logprob = scores(self._options, sequence.request_id, ids, names).astype(np.float32)
            yield Rows(sequence, {"token_id": sequence.output_ids, "logprob": logprob})


class Switch:
    """A factor that is an option, off or on."""

    backends = ("linear",)
    is_pinned = True

    def __init__(self, name: str) -> None:
        self.title = f"the option {name}"
        self._name = name

    def levels(self, runs: Sequence[Run], backend: str) -> tuple[str, ...]:  # noqa: ARG002
        return ("off", "on")

    def options(self, level: str, backend: str) -> Mapping[str, Any]:  # noqa: ARG002
        return known_level(self._name, level, {"off": {self._name: False}, "on": {self._name: True}})


class Deaf(Switch):
    """A factor that is never taken."""

    def is_taken(self, level: str, runs: Sequence[Run]) -> bool:
        return level == "off" or said(runs, "engine") != "linear"


X, Y, Z, NEIGHBOUR, BROKEN, NEEDY = (Switch(name) for name in ("x", "y", "z", "neighbour", "broken", "needy"))
DEAF = Deaf("deaf")
_FACTORS = ("x", "y", "z", "neighbour", "broken", "needy", "deaf")


def install(folder: Path) -> None:
    """Makes a folder on the import path announce them, as an installed package does."""
    metadata = folder / "linear-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: linear\nVersion: 1.0\n")
    factors = [f"{name} = linear_backend:{name.upper()}" for name in _FACTORS]
    lines = ["[tracekit.backends]", "linear = linear_backend:LinearBackend", "[tracekit.factors]", *factors]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
