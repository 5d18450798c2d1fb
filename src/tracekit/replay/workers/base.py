"""What the driver knows of whatever scores its batches."""

from __future__ import annotations

import collections.abc
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tracekit.replay.backends.base import Backend, BatchLimits, Kept, Rows, RunRows, Sequence, load_backend

__all__ = ["Facts", "Opening", "Workers"]

_ARITHMETIC = ("engine", "engine_version", "torch_version", "device", "num_threads")


@dataclass(frozen=True)
class Opening:
    """How a backend is opened, here or elsewhere.

    Attributes:
        name: of the backend.
        model: what was named as the model.
        options: an instance of its `options_type`.
        kept: what is wanted of each token.
    """

    name: str
    model: Path | None
    options: Any
    kept: Kept

    def open(self) -> Backend:
        return load_backend(self.name).open(self.model, self.options, self.kept)


@dataclass(frozen=True)
class Facts:
    """What a backend says of itself once it is open; see `Backend`."""

    mode: str | None
    vocab_size: int | None
    max_num_tokens: int | None
    batch_limits: BatchLimits
    adapters: frozenset[str] | None
    description: Mapping[str, Any]

    @property
    def arithmetic(self) -> dict[str, Any]:
        """Columns of `runs` that figures depend on, whatever was asked for: one trace has one value of each."""
        return {name: self.description.get(name) for name in _ARITHMETIC}

    @classmethod
    def of(cls, backend: Backend) -> Facts:
        return cls(
            mode=backend.mode,
            vocab_size=backend.vocab_size,
            max_num_tokens=backend.max_num_tokens,
            batch_limits=backend.batch_limits,
            adapters=backend.adapters,
            description=dict(backend.description()),
        )


class Workers(Protocol):
    """One backend, or several of one kind, that score batches."""

    @property
    def peak_bytes(self) -> int:
        """The most memory that another process held for it; 0 where there is none."""

    @property
    def facts(self) -> Facts:
        """What each of the backends says of itself."""

    def score(self, batches: Iterable[collections.abc.Sequence[Sequence]]) -> Iterator[Iterable[Rows | RunRows]]:
        """Yields for each batch, in their order, what `Backend.score` yields for it."""

    def close(self) -> None:
        """Lets go of the backends; called once, also after a failure."""
