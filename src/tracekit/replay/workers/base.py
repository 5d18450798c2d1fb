"""What the driver knows of whatever scores its batches."""

from __future__ import annotations

import collections.abc
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tracekit.errors import ConfigError
from tracekit.replay.backends.base import Backend, BatchLimits, Kept, Rows, RunRows, Sequence, load_backend

__all__ = ["Cluster", "Facts", "Opening", "Workers"]

_ARITHMETIC = ("engine", "engine_version", "torch_version", "device", "num_threads")


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster that a replay is spread over.

    Attributes:
        address: as `ray.init` takes it: 'auto', 'HOST:PORT', 'ray://HOST:PORT', or 'local' for a Ray of this process
            alone, which is the default unless RAY_ADDRESS names a cluster. Where the process is connected to a
            cluster already, that one is used.
        num_workers: backends at work at a time; by default as many as its GPUs suffice for, or one on each node
            where workers have none.
        gpus_per_worker: what Ray sets aside for each, perhaps a part of one; by default 1 where the cluster has
            GPUs, else 0.
        cpus_per_worker: the same of CPUs; it does not change how many threads a backend computes with.

    Raises:
        ConfigError: an impossible value.
    """

    address: str | None = None
    num_workers: int | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: float = 1.0

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise ConfigError(f"num-workers must be at least 1, not {self.num_workers}")
        for name, value in (("gpus-per-worker", self.gpus_per_worker), ("cpus-per-worker", self.cpus_per_worker)):
            if value is not None and (value < 0 or (value > 1 and value % 1)):
                raise ConfigError(f"{name} must be a whole number, or one between 0 and 1, not {value:g}")


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
    """One backend, or several of one kind, that score batches.

    Attributes:
        peak_bytes: most memory that another process held for it; 0 where there is none.
    """

    peak_bytes: int

    @property
    def facts(self) -> Facts:
        """What each of the backends says of itself."""

    def score(self, batches: Iterable[collections.abc.Sequence[Sequence]]) -> Iterator[Iterable[Rows | RunRows]]:
        """Yields for each batch, in their order, what `Backend.score` yields for it."""

    def close(self) -> None:
        """Lets go of the backends; called once, also after a failure."""
