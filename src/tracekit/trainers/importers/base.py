"""The contract of an importer, and the registry that finds one by name.

Shapes: P prompt tokens, T tokens after the prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tracekit.errors import BackendUnavailableError, ConfigError, InputError, nearest
from tracekit.trainers.passes import Pass

ENTRY_POINTS = "tracekit.importers"


@dataclass(frozen=True)
class Record:
    """One sequence of a file.

    Attributes:
        where: file and record, for messages.
        request_id: unique among all that is imported together.
        prompt_ids: int32 [P]; None where the file does not hold them.
        token_ids: int32 [T], what follows the prompt; None where the file does not hold them.
        sampled: bool [T]; tokens that were given, as a tool's answer, are not.
        rollout: columns of `tokens` on the rollout's side, each [T].
        passes: the same on the trainer's side, by pass.
        request, outcome: further columns of `requests` and `outcomes`.
    """

    where: str
    request_id: str
    prompt_ids: npt.NDArray[np.int32] | None
    token_ids: npt.NDArray[np.int32] | None
    sampled: npt.NDArray[np.bool_] | None = None
    rollout: Mapping[str, Any] = field(default_factory=dict)
    passes: Mapping[Pass, Mapping[str, Any]] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    outcome: Mapping[str, Any] = field(default_factory=dict)


class Importer(ABC):
    """Reads the files of one format. Made anew for each import.

    Attributes:
        suffix: what its files end with, to find them in a folder.
        engine: what sampled, where the format implies it.
        trainer: what computed the trainer's side.
    """

    suffix: ClassVar[str]
    engine: ClassVar[str | None] = None
    trainer: ClassVar[str | None] = None

    @abstractmethod
    def records(self, path: Path) -> Iterator[Record]:
        """Yields the sequences of one file, holding as few of them as it can.

        Raises:
            InputError: the file is not of this format; names the file, the record, the field, what was found and
                what was expected.
        """

    @abstractmethod
    def has_trainer(self, path: Path) -> bool:
        """Tells whether a file holds a trainer's side beside the rollout's.

        Raises:
            InputError: the file is not of this format.
        """

    def files(self, path: Path) -> list[Path]:
        """Returns the files of a folder, or the file itself.

        Raises:
            InputError: there is none.
        """
        if not path.is_dir():
            if not path.exists():
                raise InputError(f"{path}: no such file; give files of the trainer, or their folder")
            return [path]
        found = sorted(one for one in path.rglob(f"*{self.suffix}") if one.is_file())
        if not found:
            raise InputError(f"{path} holds no file that ends in {self.suffix}")
        return found


def importer_names() -> list[str]:
    """Returns the names of all installed importers."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINTS)})


def load_importer(name: str) -> Importer:
    """Returns a new importer.

    Raises:
        ConfigError: there is none of this name.
        BackendUnavailableError: its software is missing.
    """
    found = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    if not found:
        raise ConfigError(f"there is no importer '{name}'{nearest(name, importer_names())}")
    try:
        importer: Importer = found[0].load()()
    except ImportError as error:
        raise BackendUnavailableError(f"importer '{name}' cannot be loaded: {error}") from error
    return importer


def required(record: Mapping[str, Any], name: str, where: str) -> Any:
    """Returns a field.

    Raises:
        InputError: the record lacks it.
    """
    if name not in record:
        raise InputError(f"{where}: field '{name}' is missing; found {', '.join(sorted(map(str, record))[:12])}")
    return record[name]


def checked(values: Any, name: str, length: int, where: str) -> Any:
    """Returns a field that holds one value a token.

    Raises:
        InputError: it is no list, or of another length.
    """
    if not isinstance(values, list | tuple | np.ndarray):
        raise InputError(f"{where}: field '{name}' is {type(values).__name__}, expected a list of {length} values")
    if len(values) != length:
        raise InputError(f"{where}: field '{name}' has {len(values)} values, expected {length}, one a token")
    return values


def as_ids(values: Any, name: str, where: str) -> npt.NDArray[np.int32]:
    """Returns token ids, int32.

    Raises:
        InputError: they are no list of whole numbers.
    """
    try:
        array = np.asarray(values)
        if array.ndim == 1 and (array.dtype.kind in "iu" or not array.size):
            return array.astype(np.int32)
    except ValueError:
        pass
    raise InputError(f"{where}: field '{name}' is not a list of token ids")


def sampled_span(sampled: Sequence[bool] | npt.NDArray[np.bool_], where: str) -> slice:
    """Returns where the first sampled token stands and the last one ends.

    Raises:
        InputError: no token was sampled.
    """
    places = np.flatnonzero(np.asarray(sampled, bool))
    if not len(places):
        raise InputError(f"{where}: no token is in the loss mask or has a logprob, so there is nothing to compare")
    return slice(int(places[0]), int(places[-1]) + 1)
